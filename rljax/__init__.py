"""LLM-RL objectives, native to JAX: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t.

An algorithm is a value, three functions: an `advantage` (A), an `aggregation` (w) and a `ratio` (f), held by a
`PolicyGradient`; `algorithms` has the papers'. `policy_loss` is a plain sum over a `Batch`; a `penalty` is added to it.
This core imports jax and jaxtyping only.
"""

__version__ = "0.1.0"

from rljax import (
    advantage,
    aggregation,
    algorithms,
    correction,
    distillation,
    divergence,
    metrics,
    penalty,
    ratio,
    rewards,
    schedule,
)
from rljax.objective import Batch, PolicyGradient, Rollouts, policy_loss

__all__ = [
    "Batch",
    "PolicyGradient",
    "Rollouts",
    "advantage",
    "aggregation",
    "algorithms",
    "correction",
    "distillation",
    "divergence",
    "metrics",
    "penalty",
    "policy_loss",
    "ratio",
    "rewards",
    "schedule",
]
