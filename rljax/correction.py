"""Rollout correction: the policy that sampled is not quite the one that trains (other kernels, other precision).

λ_t = log π_train(y_t) − log π_rollout(y_t), of the same parameters: `Rollouts.old_logp − Rollouts.sampled_logp`.
A *weight* w̄ [P, G, T] multiplies the aggregation's weights; a *rejection* is a boolean [P, G], true for the sequences
that are kept. All are without gradient, over `[*B, T]` rows of one sequence each.

    kept = correction.geometric(mismatch, mask, low=0.999, high=1.001)
    weights = algorithm.aggregation(mask, sign) * correction.token_truncated(mismatch, mask)

What a rejection means is the caller's choice, and is written: `mask & kept[..., None]` before the advantage takes the
sequence out of its group's baseline and out of every denominator; after it, out of the denominators alone; and
`weights * kept[..., None]` out of neither. `report` says what was rejected.

All raise ValueError where shapes differ or a bound is out of range, TypeError where the mask is not boolean.
"""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax._checks import accumulators, require_between, require_mask, require_ordered, require_shape
from rljax._guards import finite

__all__ = [
    "batch_normalised",
    "geometric",
    "icepop",
    "k3",
    "report",
    "sequence_masked",
    "sequence_truncated",
    "token_truncated",
    "veto",
]

Mismatch = Float[Array, "*B T"]
Mask = Bool[Array, "*B T"]
Weights = Float[Array, "*B T"]
Kept = Bool[Array, "*B"]


def token_truncated(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0) -> Weights:
    """Truncated importance sampling, token by token: min(e^λ, cap). cap > 0.

    >>> print(token_truncated(jnp.log(jnp.array([0.5, 1.5, 4.0])), jnp.ones(3, bool)))
    [0.5 1.5 2. ]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap)
    return jnp.where(mask, jnp.exp(jnp.minimum(mismatch, jnp.log(cap))), 0.0)


def sequence_truncated(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0) -> Weights:
    """Truncated importance sampling of the sequence: min(e^{Σλ}, cap) on each of its tokens. cap > 0.

    >>> print(sequence_truncated(jnp.log(jnp.array([[0.5, 3.0], [2.0, 3.0]])), jnp.ones((2, 2), bool)))
    [[1.5 1.5]
     [2.  2. ]]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap)
    total = jnp.sum(mismatch, axis=-1, keepdims=True)
    return jnp.where(mask, jnp.exp(jnp.minimum(total, jnp.log(cap))), 0.0)


def icepop(mismatch: Mismatch, mask: Mask, *, low: float | Array = 0.5, high: float | Array = 5.0) -> Weights:
    """IcePop: e^λ within [low, high], 0 outside: a token that the two disagree about is dropped. 0 < low ≤ high.

    >>> print(icepop(jnp.log(jnp.array([0.25, 1.5, 4.0, 8.0])), jnp.ones(4, bool)))
    [0.  1.5 4.  0. ]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high)
    inside = (mismatch >= jnp.log(low)) & (mismatch <= jnp.log(high))
    return jnp.where(mask & inside, jnp.exp(jnp.where(inside, mismatch, 0.0)), 0.0)


def sequence_masked(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0) -> Weights:
    """Seq-MIS: e^{Σλ} on the tokens of a sequence where that is at most cap, 0 on the others. cap > 0.

    >>> print(sequence_masked(jnp.log(jnp.array([[0.5, 3.0], [2.0, 3.0]])), jnp.ones((2, 2), bool)))
    [[1.5 1.5]
     [0.  0. ]]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap)
    total = jnp.sum(mismatch, axis=-1, keepdims=True)
    inside = total <= jnp.log(cap)
    return jnp.where(mask & inside, jnp.exp(jnp.where(inside, total, 0.0)), 0.0)


def batch_normalised(weights: Weights, mask: Mask) -> Weights:
    """The weights over their mean on the trained tokens, so that a batch counts as much as without correction.

    >>> batch_normalised(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).tolist()
    [0.5, 1.5, 0.0]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", weights=weights)
    (weights,) = accumulators(weights=weights)
    weights = lax.stop_gradient(jnp.where(mask, weights, 0.0))
    total = jnp.sum(weights)
    return weights * jnp.sum(mask).astype(weights.dtype) / jnp.where(total > 0, total, 1.0)


def geometric(mismatch: Mismatch, mask: Mask, *, low: float | Array = 0.999, high: float | Array = 1.001) -> Kept:
    """Keeps a sequence while its geometric mean ratio is in bounds: low ≤ exp(mean λ) ≤ high. 0 < low ≤ high.

    >>> geometric(jnp.array([[0.0005, 0.0], [0.01, 0.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high)
    mean = _mean(mismatch, mask)
    return (mean >= jnp.log(low)) & (mean <= jnp.log(high))


def k3(mismatch: Mismatch, mask: Mask, *, limit: float | Array = 0.01) -> Kept:
    """Keeps a sequence while mean(e^λ − λ − 1) ≤ limit, an estimate of KL(π_rollout ‖ π_train), nats. limit > 0.

    >>> k3(jnp.array([[0.1, -0.1], [1.0, 0.0]]), jnp.ones((2, 2), bool)).tolist()  # means 0.005, 0.359
    [True, False]
    """
    mismatch, mask, limit = _checked(mismatch, mask, limit=limit)
    return _mean(jnp.where(mask, jnp.expm1(mismatch) - mismatch, 0.0), mask) <= limit


def veto(mismatch: Mismatch, mask: Mask, *, least: float | Array = 1e-4) -> Kept:
    """Drops a sequence that holds any token with e^λ < least. least > 0.

    >>> veto(jnp.array([[0.0, -1.0], [0.0, -20.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    mismatch, mask, least = _checked(mismatch, mask, least=least)
    return ~jnp.any(mask & (mismatch < jnp.log(least)), axis=-1)


def report(
    mismatch: Mismatch, mask: Mask, weights: Weights | None = None, kept: Kept | None = None
) -> dict[str, Float[Array, ""]]:
    """What the correction did, over the trained tokens of a rollout; ρ = e^λ.

    - `rejected`: share of the sequences with a trained token that are not kept;
    - `effective_samples`: 1/mean((w̄/mean w̄)²) of the weights (ρ itself where none are given), of the kept tokens;
    - `chi_squared`: mean ρ² − 1, the χ² divergence of π_train from π_rollout;
    - `kl`: mean(ρ − λ − 1), nats.

    >>> found = report(jnp.log(jnp.array([[0.5, 1.5]])), jnp.ones((1, 2), bool))  # mean ρ = 1, mean ρ² = 1.25
    >>> {name: float(x) for name, x in found.items()}
    {'rejected': 0.0, 'effective_samples': 0.8, 'chi_squared': 0.25, 'kl': 0.1438}
    """
    mismatch, mask = _checked(mismatch, mask)
    present = jnp.any(mask, axis=-1)
    kept = jnp.ones_like(present) if kept is None else kept
    require_shape(present.shape, "mask's leading axes", kept=kept)
    rho = jnp.where(mask, jnp.exp(mismatch), 0.0)
    live = mask & kept[..., None]
    if weights is None:  # up to a factor, which the share does not feel and which keeps its squares from overflowing
        weights = jnp.where(mask, jnp.exp(mismatch - jnp.max(mismatch, where=live, initial=-1e30)), 0.0)
    weights = jnp.asarray(weights).astype(rho.dtype)
    require_shape(mask.shape, "mask", weights=weights)
    n, live_n = (jnp.maximum(jnp.sum(x), 1).astype(rho.dtype) for x in (mask, live))
    w = jnp.where(live, weights, 0.0)
    squares = jnp.sum(w**2)
    return {
        "rejected": jnp.sum(present & ~kept).astype(rho.dtype) / jnp.maximum(jnp.sum(present), 1).astype(rho.dtype),
        "effective_samples": jnp.sum(w) ** 2 / live_n / jnp.where(squares > 0, squares, 1.0),
        "chi_squared": jnp.sum(jnp.where(mask, jnp.expm1(2 * mismatch), 0.0)) / n,  # a difference of ones is not exact
        "kl": jnp.sum(jnp.where(mask, jnp.expm1(mismatch) - mismatch, 0.0)) / n,
    }


def _checked(mismatch, mask, **bounds) -> tuple[Array, ...]:
    """λ without gradient, finite, and 0 outside the mask; the mask; and the bounds in λ's dtype."""
    for name, value in bounds.items():
        require_between(name, value, 1e-30)
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", mismatch=mismatch)
    (mismatch,) = accumulators(mismatch=mismatch)
    mismatch = lax.stop_gradient(jnp.where(mask, finite(mismatch), 0.0))
    return mismatch, mask, *(jnp.asarray(value, mismatch.dtype) for value in bounds.values())


def _mean(x: Array, mask: Array) -> Array:
    """The mean over a sequence's trained tokens; 0 where it has none."""
    return jnp.sum(x, axis=-1) / jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(x.dtype)
