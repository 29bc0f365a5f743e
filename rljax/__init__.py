"""LLM-RL objectives, native to JAX: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t.

An algorithm is a value, three functions: an `advantage` (A), an `aggregation` (w) and a `ratio` (f), held by a
`PolicyGradient`; `algorithms` has the papers'. `policy_loss` is a plain sum over a `Batch`; a `penalty` is added to it.
This core imports jax and jaxtyping only.
"""

import importlib
from typing import TYPE_CHECKING

from rljax import (
    advantage,
    aggregation,
    algorithms,
    carried,
    correction,
    distillation,
    divergence,
    metrics,
    penalty,
    ratio,
    regression,
    rewards,
    schedule,
)
from rljax.objective import Batch, Carried, PolicyGradient, Rollouts, advantages_of, make_batch, policy_loss

if TYPE_CHECKING:
    from rljax import logprobs

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Carried",
    "PolicyGradient",
    "Rollouts",
    "advantage",
    "advantages_of",
    "aggregation",
    "algorithms",
    "carried",
    "correction",
    "distillation",
    "divergence",
    "logprobs",
    "make_batch",
    "metrics",
    "penalty",
    "policy_loss",
    "ratio",
    "regression",
    "rewards",
    "schedule",
]


def __getattr__(name: str):
    """`rljax.logprobs`, which imports the kernels' entry points, is loaded when it is first used."""
    if name == "logprobs":
        return importlib.import_module("rljax.logprobs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
