"""JAX library of LLM-RL objectives: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t.

An algorithm is a `PolicyGradient` of three functions, `advantage` (A), `aggregation` (w) and `ratio` (f); `algorithms`
has the published ones. `policy_loss` is a plain sum over a `Batch`, to which a `penalty` may be added.
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
    """Loads `rljax.logprobs` on first use, because it imports the kernels."""
    if name == "logprobs":
        return importlib.import_module("rljax.logprobs")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
