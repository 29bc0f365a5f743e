"""Rollout correction: weights and rejections for tokens that a slightly different policy has sampled.

The sampler's kernels, and possibly its precision, differ from the trainer's, so its policy q differs from the trained
policy p even if the parameters are equal. The mismatch of a token is λ_t = log p(y_t) − log q(y_t), in nats:
`Rollouts.old_logp − Rollouts.sampled_logp`. A *weight* w̄ [P, G, T] multiplies the weights w of the aggregation. A
*rejection* is a boolean [P, G], true for the sequences that are kept. The results have no gradient.

    weights = aggregation.token_mean(mask, sign) * correction.token_truncated(mismatch, mask)

An algorithm takes a correction through one of three combinators, which differ in what they change:

    weighted(token_mean, token_truncated)      # multiplies w; the denominators of w do not change
    aggregation_of_kept(token_mean, veto)      # also leaves rejected sequences out of the denominators
    advantage_of_kept(group_relative, veto)    # leaves them out of their group's baseline; their A is 0

`report` measures the correction. Each row is one sequence if `segment_ids` is None. In packed rows, tokens with equal
non-zero ids are one sequence, id 0 is not trained, and a rejection is [..., T]. Rejections drop a sequence with a NaN
among its λ, except `opsm` if A ≥ 0. Functions raise ValueError if shapes differ and TypeError if a mask is not boolean.
Formulas without a source are from verl 0.9.1.
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
    """Token-level truncated importance sampling (token-TIS): w̄_t = min(e^{λ_t}, cap).

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `cap` > 0 is a
    ratio. Returns w̄, [..., T], in [0, cap]; 0 at tokens that are not trained. Unlike in `icepop`, a ratio above `cap`
    is lowered to `cap`, not dropped. Raises ValueError if cap ≤ 0.

    >>> print(token_truncated(jnp.log(jnp.array([0.5, 1.5, 4.0])), jnp.ones(3, bool)))
    [0.5 1.5 2. ]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap, segment_ids=segment_ids)
    return jnp.where(mask, jnp.exp(jnp.minimum(mismatch, jnp.log(cap))), 0.0)


@ranges(cap=(1e-30, math.inf))
def sequence_truncated(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0, segment_ids: Ids = None) -> Weights:
    """Sequence-level truncated importance sampling (sequence-TIS): w̄_t = min(e^s, cap), s = Σλ over the sequence.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `cap` > 0 is a
    ratio. Returns w̄, [..., T], in [0, cap]; 0 at tokens that are not trained. Unlike in `token_truncated`, all tokens
    of a sequence have the same weight. Raises ValueError if cap ≤ 0.

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
    """IcePop: w̄_t = e^{λ_t} if low ≤ e^{λ_t} ≤ high, else 0.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `low` and
    `high` are ratios, 0 < low ≤ high. Returns w̄, [..., T]; 0 at tokens that are not trained. Unlike in
    `token_truncated`, a ratio outside the bounds gives weight 0. Raises ValueError if low ≤ 0 or low > high.

    >>> print(icepop(jnp.log(jnp.array([0.25, 1.5, 4.0, 8.0])), jnp.ones(4, bool)))
    [0.  1.5 4.  0. ]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high, segment_ids=segment_ids)
    outside = (mismatch < jnp.log(low)) | (mismatch > jnp.log(high))
    return jnp.where(mask & ~outside, jnp.exp(jnp.where(outside, 0.0, mismatch)), 0.0)


@ranges(cap=(1e-30, math.inf))
def sequence_masked(mismatch: Mismatch, mask: Mask, *, cap: float | Array = 2.0, segment_ids: Ids = None) -> Weights:
    """Sequence-level masked importance sampling (Seq-MIS): w̄_t = e^s if e^s ≤ cap, else 0; s = Σλ over the sequence.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `cap` > 0 is a
    ratio. Returns w̄, [..., T], in [0, cap]; 0 at tokens that are not trained. In `sequence_truncated`, a ratio above
    `cap` gives the weight `cap`. Raises ValueError if cap ≤ 0.

    >>> print(sequence_masked(jnp.log(jnp.array([[0.5, 3.0], [2.0, 3.0]])), jnp.ones((2, 2), bool)))
    [[1.5 1.5]
     [0.  0. ]]
    """
    mismatch, mask, cap = _checked(mismatch, mask, cap=cap, segment_ids=segment_ids)
    total = _segments.total(mismatch, _sequences(mask, segment_ids))
    outside = total > jnp.log(cap)
    return jnp.where(mask & ~outside, jnp.exp(jnp.where(outside, 0.0, total)), 0.0)


def batch_normalized(weights: Weights, mask: Mask) -> Weights:
    """Weights divided by their mean over the trained tokens, so that a correction does not change the size of a step.

    `weights` is w̄ [..., T], for instance from `token_truncated`; `mask` [..., T] is true at the trained tokens.
    Returns w̄/mean w̄, [..., T]; 0 at tokens that are not trained, and 0 everywhere if all weights are 0.

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
    """Keeps a sequence if the geometric mean of its ratios is in an interval (Geo-RS): low ≤ exp(mean λ) ≤ high.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `low` and
    `high` are ratios, 0 < low ≤ high. Returns true for the kept sequences, [...], or [..., T] in packed rows. Unlike in
    `k3`, positive and negative λ cancel. Raises ValueError if low ≤ 0 or low > high.

    >>> geometric(jnp.array([[0.0005, 0.0], [0.01, 0.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    require_ordered(low, high, 1e-30)
    mismatch, mask, low, high = _checked(mismatch, mask, low=low, high=high, segment_ids=segment_ids)
    mean = _segments.mean(mismatch, _sequences(mask, segment_ids))
    return _kept((mean >= jnp.log(low)) & (mean <= jnp.log(high)), segment_ids)


@ranges(limit=(1e-30, math.inf))
def k3(mismatch: Mismatch, mask: Mask, *, limit: float | Array = 0.01, segment_ids: Ids = None) -> Kept:
    """Keeps a sequence if its estimated KL(q ‖ p) is small (K3-RS): mean(e^λ − λ − 1) ≤ limit.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `limit` > 0 is
    in nats per token. Returns true for the kept sequences, [...], or [..., T] in packed rows. Unlike in `geometric`,
    every token with λ ≠ 0 raises the estimate. Raises ValueError if limit ≤ 0.

    >>> k3(jnp.array([[0.1, -0.1], [1.0, 0.0]]), jnp.ones((2, 2), bool)).tolist()  # means 0.005, 0.359
    [True, False]
    """
    mismatch, mask, limit = _checked(mismatch, mask, limit=limit, segment_ids=segment_ids)
    divergence = jnp.where(mask, jnp.expm1(mismatch) - mismatch, 0.0)
    return _kept(_segments.mean(divergence, _sequences(mask, segment_ids)) <= limit, segment_ids)


@ranges(least=(1e-30, math.inf))
def veto(mismatch: Mismatch, mask: Mask, *, least: float | Array = 1e-4, segment_ids: Ids = None) -> Kept:
    """Drops a sequence if one of its trained tokens has a ratio e^λ < least.

    `mismatch` (λ in nats), `mask` (true at the trained tokens) and `segment_ids` (or None) are [..., T]; `least` > 0 is
    a ratio. Returns true for the kept sequences, [...], or [..., T] in packed rows. Unlike in `geometric`, one token
    can drop a sequence. Raises ValueError if least ≤ 0.

    >>> veto(jnp.array([[0.0, -1.0], [0.0, -20.0]]), jnp.ones((2, 2), bool)).tolist()
    [True, False]
    """
    mismatch, mask, least = _checked(mismatch, mask, least=least, segment_ids=segment_ids)
    vetoed = (mask & ~(mismatch >= jnp.log(least))).astype(mismatch.dtype)
    return _kept(_segments.total(vetoed, _sequences(mask, segment_ids)) == 0, segment_ids)


@ranges(limit=(0, math.inf))
def opsm(mismatch: Mismatch, mask: Mask, sign: Array, *, limit: float | Array, segment_ids: Ids = None) -> Kept:
    """Off-policy sequence masking (DeepSeek-V3.2, 2512.02556): drops off-policy sequences with a negative advantage.

        keep if A ≥ 0 or mean(−λ) ≤ limit,    −λ_t = log q(y_t) − log p(y_t)

    Unlike `k3`, it keeps sequences with a mean λ ≥ 0. Read in TRL's and slime's code, not checked against the paper.

    Args:
      mismatch: λ, [..., T], in nats.
      mask: True at the trained tokens, [..., T].
      sign: Sign of the advantage, −1, 0 or 1: [...], one per sequence, or [..., T] in packed rows.
      limit: Greatest mean of −λ over a sequence, in nats; limit ≥ 0.
      segment_ids: Sequence ids, [..., T], or None if each row is one sequence.

    Returns:
      True for the sequences that are kept, [...], or [..., T] in packed rows.

    Raises:
      ValueError: If shapes differ or limit < 0.

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
    """An aggregation whose weights are multiplied by a correction.

        w · w̄,    w = aggregation(mask, sign),    w̄ = weight(old_logp − sampled_logp, mask)

    `aggregation` is as in `PolicyGradient`. `weight` returns a weight [P, G, T] or a rejection [P, G]; if it has a
    parameter `sign`, as `opsm` has, it gets the sign of each completion's A. Unlike in `aggregation_of_kept`, rejected
    sequences count in the denominators of w. The result requires `old_logp` and `sampled_logp`.

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
    """An aggregation over the sequences that a rejection keeps.

        aggregation(mask of the kept sequences, sign),    kept = keep(old_logp − sampled_logp, mask)

    `aggregation` is as in `PolicyGradient`. `keep` returns a rejection [P, G] and may have a parameter `sign`. Unlike
    in `weighted`, rejected sequences do not count in denominators. The result requires `old_logp` and `sampled_logp`.

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
    """An advantage over the sequences that a rejection keeps; rejected sequences have A = 0.

        advantage(rewards, mask of the kept sequences),    kept = keep(old_logp − sampled_logp, mask)

    `advantage` is as in `PolicyGradient`; `keep` returns a rejection [P, G]. Rejected sequences do not count in their
    group's baseline; unlike in `aggregation_of_kept`, w does not change. The result requires `old_logp` and
    `sampled_logp`. Raises ValueError if `keep` has a parameter `sign`, because the sign of A is not known yet.

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
"""The fields of `Rollouts` from which the mismatch is computed."""


def _named(function: Callable, old_logp, sampled_logp, fields: dict[str, Array]) -> dict[str, Array]:
    """The fields that `function` requires, which may include the two fields of the mismatch."""
    fields = {"old_logp": old_logp, "sampled_logp": sampled_logp, **fields}
    return {name: fields[name] for name in required_fields(function)}


def _of_rollouts(function: Callable, mask, sign, old_logp, sampled_logp) -> Array:
    """A weight [P, G, T] or a rejection [P, G, 1] of unpacked rollouts."""
    require_shape(mask.shape, "mask", old_logp=old_logp, sampled_logp=sampled_logp)
    old_logp, sampled_logp = accumulators(old_logp=old_logp, sampled_logp=sampled_logp)
    asks = "sign" in inspect.signature(function).parameters
    if asks and sign is None:
        raise ValueError(f"keep = {name_of(function)}: expected a function of (mismatch, mask), because the sign of "
                         "the advantage is not known yet")  # fmt: skip
    sides = (sign,) if asks else ()
    found = function(old_logp - sampled_logp, mask, *sides)
    return found[..., None] if found.ndim == mask.ndim - 1 else found


def report(
    mismatch: Mismatch, mask: Mask, weights: Weights | None = None, kept: Kept | None = None
) -> dict[str, Float[Array, ""]]:
    """Statistics of a correction over the trained tokens of unpacked rows, with ρ = e^λ.

    - `rejected`: among the sequences with a trained token, the share that is not kept;
    - `effective_samples`: 1/mean((w̄/mean w̄)²) over the kept tokens, in [0, 1];
    - `chi_squared`: mean ρ² − 1, the χ² divergence of the trained policy p from the sampler q;
    - `kl`: mean(ρ − λ − 1), an estimate of KL(q ‖ p) in nats.

    `metrics.policy_summary` has corresponding statistics of the ratio π_θ/π_old.

    Args:
      mismatch: λ, [..., T], in nats.
      mask: True at the trained tokens, [..., T].
      weights: Weights w̄ of the correction, [..., T]; None for ρ.
      kept: Sequences that are kept, [...]; None keeps all.

    Returns:
      The four statistics by name, scalars without gradient.

    Raises:
      ValueError: If shapes differ.

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
    if weights is None:  # scaled by 1/max ρ, which cancels in the share and keeps the squares from overflowing
        weights = jnp.where(mask, jnp.exp(mismatch - jnp.max(mismatch, where=live, initial=-1e30)), 0.0)
    weights = jnp.asarray(weights).astype(rho.dtype)
    require_shape(mask.shape, "mask", weights=weights)
    n, live_n = (jnp.maximum(jnp.sum(x), 1).astype(rho.dtype) for x in (mask, live))
    w = jnp.where(live, weights, 0.0)
    squares = jnp.sum(w**2)
    return {
        "rejected": jnp.sum(present & ~kept).astype(rho.dtype) / jnp.maximum(jnp.sum(present), 1).astype(rho.dtype),
        "effective_samples": jnp.sum(w) ** 2 / live_n / jnp.where(squares > 0, squares, 1.0),
        "chi_squared": jnp.sum(jnp.where(mask, jnp.expm1(2 * mismatch), 0.0)) / n,  # expm1: exact near 0
        "kl": jnp.sum(jnp.where(mask, jnp.expm1(mismatch) - mismatch, 0.0)) / n,
    }


def _checked(mismatch, mask, *, segment_ids: Ids = None, **bounds) -> tuple[Array, ...]:
    """λ as a constant, finite and 0 at tokens that are not trained; the mask; and the bounds in the dtype of λ."""
    mask = trained(mask, segment_ids)
    require_shape(mask.shape, "mask", mismatch=mismatch)
    (mismatch,) = accumulators(mismatch=mismatch)
    mismatch = lax.stop_gradient(jnp.where(mask, finite(mismatch), 0.0))
    return mismatch, mask, *(lax.stop_gradient(jnp.asarray(value, mismatch.dtype)) for value in bounds.values())


def _sequences(mask: Array, segment_ids: Ids) -> Array:
    return mask if segment_ids is None else jnp.where(mask, segment_ids, 0)


def _kept(holds: Array, segment_ids: Ids) -> Array:
    """`holds` [..., T] for packed rows; otherwise without its last axis, which has size 1."""
    return holds[..., 0] if segment_ids is None else holds
