"""Rollout correction: the policy that sampled is not quite the one that trains (other kernels, other precision).

λ_t = log π_train(y_t) − log π_rollout(y_t), of the same parameters: `Rollouts.old_logp − Rollouts.sampled_logp`.
A *weight* w̄ [P, G, T] multiplies the aggregation's weights; a *rejection* is a boolean [P, G], true for the sequences
that are kept. All are constants, over rows `[*B, T]`: the derivative by their bounds is 0, too.

    weights = aggregation.token_mean(mask, sign) * correction.token_truncated(mismatch, mask)

In an algorithm the expression says what a correction reaches:

    weighted(token_mean, token_truncated)      # multiplies w; a rejection here leaves the denominators as they are
    aggregation_of_kept(token_mean, veto)      # rejected sequences are out of the denominators of w, too
    advantage_of_kept(group_relative, veto)    # rejected sequences are out of their group's baseline, and have A = 0

A sequence with a NaN among its λ is not kept. `report` measures what was rejected. Rows may be packed: with
`segment_ids` sequences are those of equal non-zero ids, and a rejection is [*B, T].

All raise ValueError where shapes differ or a bound is out of range, TypeError where the mask is not boolean.
"""

import inspect
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from rljax import _segments
from rljax._checks import accumulators, ranges, require_mask, require_ordered, require_shape
from rljax._expression import combinator, name_of
from rljax._guards import finite
from rljax.objective import required_fields, requiring, trained

__all__ = [
    "advantage_of_kept",
    "aggregation_of_kept",
    "batch_normalized",
    "geometric",
    "icepop",
    "k3",
    "opsm",
    "report",
    "sequence_masked",
    "sequence_truncated",
    "token_truncated",
    "veto",
    "weighted",
]

Mismatch = Float[Array, "*B T"]
Mask = Bool[Array, "*B T"]
Weights = Float[Array, "*B T"]
Kept = Bool[Array, "*B"] | Bool[Array, "*B T"]
Ids = Int[Array, "*B T"] | None


@ranges(cap=(1e-30, math.inf))
def token_truncated(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0, segment_ids: Ids = None) -> Weights:
    """Truncated importance sampling, token by token: min(e^λ, cap). cap > 0.

    >>> print(token_truncated(jnp.log(jnp.array([0.5, 1.5, 4.0])), jnp.ones(3, bool)))
    [0.5 1.5 2. ]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap, segment_ids=segment_ids)
    return jnp.where(mask, jnp.exp(jnp.minimum(mismatch, jnp.log(cap))), 0.0)


@ranges(cap=(1e-30, math.inf))
def sequence_truncated(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0, segment_ids: Ids = None) -> Weights:
    """Truncated importance sampling of the sequence: min(e^{Σλ}, cap) on each of its tokens. cap > 0.

    >>> print(sequence_truncated(jnp.log(jnp.array([[0.5, 3.0], [2.0, 3.0]])), jnp.ones((2, 2), bool)))
    [[1.5 1.5]
     [2.  2. ]]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap, segment_ids=segment_ids)
    total = _segments.total(mismatch, _sequences(mask, segment_ids))
    return jnp.where(mask, jnp.exp(jnp.minimum(total, jnp.log(cap))), 0.0)


@ranges(low=(1e-30, math.inf), high=(1e-30, math.inf))
def icepop(
    mismatch: Mismatch,
    mask: Mask,
    *,
    low: float | Array = 0.5,
    high: float | Array = 5.0,
    segment_ids: Ids = None,
) -> Weights:
    """IcePop: e^λ within [low, high], 0 outside: a token that the two disagree about is dropped. 0 < low ≤ high.

    >>> print(icepop(jnp.log(jnp.array([0.25, 1.5, 4.0, 8.0])), jnp.ones(4, bool)))
    [0.  1.5 4.  0. ]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high, segment_ids=segment_ids)
    outside = (mismatch < jnp.log(low)) | (mismatch > jnp.log(high))
    return jnp.where(mask & ~outside, jnp.exp(jnp.where(outside, 0.0, mismatch)), 0.0)


@ranges(cap=(1e-30, math.inf))
def sequence_masked(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0, segment_ids: Ids = None) -> Weights:
    """Seq-MIS: e^{Σλ} on the tokens of a sequence where that is at most cap, 0 on the others. cap > 0.

    >>> print(sequence_masked(jnp.log(jnp.array([[0.5, 3.0], [2.0, 3.0]])), jnp.ones((2, 2), bool)))
    [[1.5 1.5]
     [0.  0. ]]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap, segment_ids=segment_ids)
    total = _segments.total(mismatch, _sequences(mask, segment_ids))
    outside = total > jnp.log(cap)
    return jnp.where(mask & ~outside, jnp.exp(jnp.where(outside, 0.0, total)), 0.0)


def batch_normalized(weights: Weights, mask: Mask) -> Weights:
    """The weights over their mean on the trained tokens, so that a batch counts as much as without correction.

    >>> batch_normalized(jnp.array([1.0, 3.0, 9.0]), jnp.array([True, True, False])).tolist()
    [0.5, 1.5, 0.0]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", weights=weights)
    (weights,) = accumulators(weights=weights)
    weights = lax.stop_gradient(jnp.where(mask, weights, 0.0))
    total = jnp.sum(weights)
    return weights * jnp.sum(mask).astype(weights.dtype) / jnp.where(total > 0, total, 1.0)


@ranges(low=(1e-30, math.inf), high=(1e-30, math.inf))
def geometric(
    mismatch: Mismatch,
    mask: Mask,
    *,
    low: float | Array = 0.999,
    high: float | Array = 1.001,
    segment_ids: Ids = None,
) -> Kept:
    """Keeps a sequence while its geometric mean ratio is in bounds: low ≤ exp(mean λ) ≤ high. 0 < low ≤ high.

    >>> geometric(jnp.array([[0.0005, 0.0], [0.01, 0.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high, segment_ids=segment_ids)
    mean = _segments.mean(mismatch, _sequences(mask, segment_ids))
    return _kept((mean >= jnp.log(low)) & (mean <= jnp.log(high)), segment_ids)


@ranges(limit=(1e-30, math.inf))
def k3(mismatch: Mismatch, mask: Mask, *, limit: float | Array = 0.01, segment_ids: Ids = None) -> Kept:
    """Keeps a sequence while mean(e^λ − λ − 1) ≤ limit, an estimate of KL(π_rollout ‖ π_train), nats. limit > 0.

    >>> k3(jnp.array([[0.1, -0.1], [1.0, 0.0]]), jnp.ones((2, 2), bool)).tolist()  # means 0.005, 0.359
    [True, False]
    """
    mismatch, mask, limit = _checked(mismatch, mask, limit=limit, segment_ids=segment_ids)
    divergence = jnp.where(mask, jnp.expm1(mismatch) - mismatch, 0.0)
    return _kept(_segments.mean(divergence, _sequences(mask, segment_ids)) <= limit, segment_ids)


@ranges(least=(1e-30, math.inf))
def veto(mismatch: Mismatch, mask: Mask, *, least: float | Array = 1e-4, segment_ids: Ids = None) -> Kept:
    """Drops a sequence that holds any token with e^λ < least. least > 0.

    >>> veto(jnp.array([[0.0, -1.0], [0.0, -20.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    mismatch, mask, least = _checked(mismatch, mask, least=least, segment_ids=segment_ids)
    vetoed = (mask & ~(mismatch >= jnp.log(least))).astype(mismatch.dtype)
    return _kept(_segments.total(vetoed, _sequences(mask, segment_ids)) == 0, segment_ids)


@ranges(limit=(0, math.inf))
def opsm(mismatch: Mismatch, mask: Mask, sign: Array, *, limit: float | Array, segment_ids: Ids = None) -> Kept:
    """Off-policy sequence masking: keeps a sequence if A ≥ 0 or mean(−λ) ≤ limit, nats (DeepSeek-V3.2, 2512.02556).

        mean_t(log q_t − log p_t) ≤ limit,    q the sampler's policy, p the trained one

    `sign` is the side of each sequence's advantage, [*B] as aggregations get it; [*B, T] on packed rows. There is no
    published limit, so no default: limit ≥ 0. Not verified from the paper: read in TRL's and slime's code.

    >>> opsm(jnp.array([[-0.5], [-0.5], [-0.1]]), jnp.ones((3, 1), bool), jnp.array([1, -1, -1]), limit=0.2).tolist()
    [True, False, True]
    """
    mismatch, mask, limit = _checked(mismatch, mask, limit=limit, segment_ids=segment_ids)
    if segment_ids is None:
        require_shape(mask.shape[:-1], "mask's leading axes", sign=sign)
    else:
        require_shape(mask.shape, "mask", sign=sign)
    divergence = -_segments.mean(mismatch, _sequences(mask, segment_ids))
    return (jnp.asarray(sign) >= 0) | _kept(divergence <= limit, segment_ids)


@combinator
def weighted(aggregation: Callable, weight: Callable) -> Callable:
    """The aggregation's weights times `weight(mismatch, mask)`, a weight [P, G, T] or a rejection [P, G].

        w · w̄,    mismatch = old_logp − sampled_logp

    The aggregation does not see the correction: denominators stay as they are. A weight that names a third argument
    `sign` (`opsm`) is given the completions' sides. Needs `Rollouts.old_logp` and `.sampled_logp`.

    >>> from rljax import aggregation
    >>> mask, sign = jnp.ones((1, 2, 1), bool), jnp.array([[1, -1]])
    >>> old_logp, sampled_logp = jnp.array([[[-1.0], [-1.0]]]), jnp.array([[[-1.0], [-3.0]]])  # e^λ = 1, e²
    >>> weighted(aggregation.token_mean, token_truncated)(mask, sign, old_logp=old_logp, sampled_logp=sampled_logp
    ...     ).tolist()
    [[[0.5], [1.0]]]
    """

    def corrected(mask, sign, *, old_logp, sampled_logp, **fields):
        found = _of_rollouts(weight, mask, sign, old_logp, sampled_logp)
        weights = aggregation(mask, sign, **_named(aggregation, old_logp, sampled_logp, fields))
        return weights * found.astype(weights.dtype)

    return requiring(required_fields(aggregation) | MISMATCH, corrected)


@combinator
def aggregation_of_kept(aggregation: Callable, keep: Callable) -> Callable:
    """The aggregation over the sequences that `keep(mismatch, mask) -> [P, G]` keeps: the others count in nothing.

    Needs `Rollouts.old_logp` and `.sampled_logp`.

    >>> from rljax import aggregation
    >>> mask, sign = jnp.ones((1, 2, 1), bool), jnp.array([[1, -1]])
    >>> old_logp, sampled_logp = jnp.array([[[-1.0], [-20.0]]]), jnp.array([[[-1.0], [-1.0]]])
    >>> aggregation_of_kept(aggregation.token_mean, veto)(mask, sign, old_logp=old_logp, sampled_logp=sampled_logp
    ...     ).tolist()
    [[[1.0], [0.0]]]
    """

    def of_kept(mask, sign, *, old_logp, sampled_logp, **fields):
        kept = mask & _of_rollouts(keep, mask, sign, old_logp, sampled_logp)
        return aggregation(kept, sign, **_named(aggregation, old_logp, sampled_logp, fields))

    return requiring(required_fields(aggregation) | MISMATCH, of_kept)


@combinator
def advantage_of_kept(advantage: Callable, keep: Callable) -> Callable:
    """The advantage over the sequences that `keep(mismatch, mask) -> [P, G]` keeps: the others are out of their
    group's baseline, and have A = 0. Needs `Rollouts.old_logp` and `.sampled_logp`.

    >>> from rljax import advantage
    >>> mask, rewards = jnp.ones((1, 3, 1), bool), jnp.array([[1.0, 0.0, 5.0]])
    >>> old_logp, sampled_logp = jnp.array([[[-1.0], [-1.0], [-20.0]]]), jnp.full((1, 3, 1), -1.0)
    >>> advantage_of_kept(advantage.mean_baseline, veto)(rewards, mask, old_logp=old_logp, sampled_logp=sampled_logp
    ...     ).tolist()
    [[[0.5], [-0.5], [0.0]]]
    """

    def of_kept(rewards, mask, *, old_logp, sampled_logp, **fields):
        kept = mask & _of_rollouts(keep, mask, None, old_logp, sampled_logp)
        A = advantage(rewards, kept, **_named(advantage, old_logp, sampled_logp, fields))
        return jnp.where(kept, A, 0.0)

    return requiring(required_fields(advantage) | MISMATCH, of_kept)


MISMATCH = frozenset({"old_logp", "sampled_logp"})
"""The fields of `Rollouts` that the mismatch is made of."""


def _named(function: Callable, old_logp, sampled_logp, fields: dict[str, Array]) -> dict[str, Array]:
    """The fields that the corrected function names itself; the two of the mismatch may be among them."""
    fields = {"old_logp": old_logp, "sampled_logp": sampled_logp, **fields}
    return {name: fields[name] for name in required_fields(function)}


def _of_rollouts(function: Callable, mask, sign, old_logp, sampled_logp) -> Array:
    """A weight or a rejection of rollouts, whose rows are one sequence each, as [P, G, T] or [P, G, 1]."""
    require_shape(mask.shape, "mask", old_logp=old_logp, sampled_logp=sampled_logp)
    old_logp, sampled_logp = accumulators(old_logp=old_logp, sampled_logp=sampled_logp)
    asks = "sign" in inspect.signature(function).parameters
    if asks and sign is None:
        raise ValueError(f"{name_of(function)} requires the side of the advantage, which is not known before it: "
                         "expected a rejection of (mismatch, mask)")  # fmt: skip
    sides = (sign,) if asks else ()
    found = function(old_logp - sampled_logp, mask, *sides)
    return found[..., None] if found.ndim == mask.ndim - 1 else found


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


def _checked(mismatch, mask, *, segment_ids: Ids = None, **bounds) -> tuple[Array, ...]:
    """λ without gradient, finite, and 0 outside the mask; the mask; and the bounds in λ's dtype."""
    mask = trained(mask, segment_ids)
    require_shape(mask.shape, "mask", mismatch=mismatch)
    (mismatch,) = accumulators(mismatch=mismatch)
    mismatch = lax.stop_gradient(jnp.where(mask, finite(mismatch), 0.0))
    return mismatch, mask, *(lax.stop_gradient(jnp.asarray(value, mismatch.dtype)) for value in bounds.values())


def _sequences(mask: Array, segment_ids: Ids) -> Array:
    return mask if segment_ids is None else jnp.where(mask, segment_ids, 0)


def _kept(holds: Array, segment_ids: Ids) -> Array:
    """[*B] where a row is one sequence, from [*B, 1]; [*B, T] where rows are packed."""
    return holds[..., 0] if segment_ids is None else holds
