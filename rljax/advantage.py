"""Advantages A: what a token deserves, once a rollout and without gradient.

Each is `f(rewards [P, G] or [P, G, T], mask [P, G, T]) -> [P, G, T]`, 0 where the mask is false. A completion whose
mask is empty is absent: it enters no statistic of its group, so ragged groups need no second path. N is the number of
present completions of a group, n_i the trained tokens of completion i. An outcome reward `[P, G]` belongs to the
completion, whatever is masked; of a dense one `[P, G, T]` the masked tokens are ignored. Functions of a completion's
reward R take the sum of a dense one; those written in G_t = Σ_{j≥t} m_j r_j take its reward-to-go.

A constant outcome reward gives exactly 0 everywhere, and so does a group of one. All raise ValueError where shapes do
not fit, TypeError where the mask is not boolean.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax import _segments
from rljax._checks import accumulators, require_mask, require_rank, require_shape

__all__ = [
    "group_relative",
    "leave_one_out",
    "leave_one_out_token_baseline",
    "length_weighted",
    "mean_baseline",
    "optimal_token_baseline",
]

Rewards = Float[Array, "P G"] | Float[Array, "P G T"]
Mask = Bool[Array, "P G T"]
Advantages = Float[Array, "P G T"]


def group_relative(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward standardised within its group: (R − mean)/(std + 1e-6), std with N − 1 (GRPO, 2402.03300)."""
    mask, centred, present, count = _outcomes(rewards, mask)
    centred = _deviation(centred, present, present)
    std = jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))
    return _spread(centred / (std + 1e-6), mask)


def mean_baseline(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less its group's mean, R − mean, not divided by the std (Dr. GRPO, 2503.20783)."""
    mask, centred, present, _ = _outcomes(rewards, mask)
    return _spread(_deviation(centred, present, present), mask)


def leave_one_out(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less the mean of the others', N/(N − 1)·(R − mean) (RLOO, 2402.14740). A group of one gets 0."""
    mask, centred, present, count = _outcomes(rewards, mask)
    return _spread(_deviation(centred, present, present) * count / jnp.maximum(count - 1, 1), mask)


def length_weighted(rewards: Rewards, mask: Mask) -> Advantages:
    """The reward less the length-weighted mean, R − Σ n_j R_j / Σ n_j (OPO, 2505.23585)."""
    mask, centred, present, _ = _outcomes(rewards, mask)
    lengths = jnp.sum(mask, axis=-1).astype(centred.dtype)
    return _spread(_deviation(centred, lengths, present), mask)


def optimal_token_baseline(rewards: Rewards, mask: Mask, *, proxy: Float[Array, "P G T"]) -> Advantages:
    """The reward-to-go less the group's energy-weighted mean at the same ordinal (OTB, 2602.07078).

        W_t = Σ_{j≤t} m_j e_j,    B_t = Σ_{i alive} G_{i,t} W_{i,t} / Σ_{i alive} W_{i,t},    A_{i,t} = G_{i,t} − B_t

    `proxy` is e_t = 1 − 2π(y_t) + Σ_v π(v)², the squared norm of the logit gradient, floored at 0 (to weigh by
    truncated importance weights w̄, give e_t w̄_t²); W is the realized energy; alive means n_i ≥ t. Where ΣW = 0 the
    plain mean of the same members stands in. Where no other member is alive: the others' energy-weighted mean at their
    own last tokens (the paper's code leaves A = 0 there, or pays for being longest).

    The baseline holds the sample itself, so it is biased: measured from groups of 4, the gradient has .46–.68 of its
    length and .35–.43 of the variance. `leave_one_out_token_baseline` is unbiased.
    """
    return _token_baseline(rewards, mask, proxy, _everyone)


def leave_one_out_token_baseline(rewards: Rewards, mask: Mask, *, proxy: Float[Array, "P G T"]) -> Advantages:
    """`optimal_token_baseline` with i itself left out of both sums of its baseline: unbiased (2602.07078).

        A_{i,t} = G_{i,t} − Σ_{j≠i alive} G_{j,t} W_{j,t} / Σ_{j≠i alive} W_{j,t}

    Measured against `leave_one_out`, its variance is 1.12–1.22 from groups of 4 and .95–1.03 from groups of 32.
    """
    return _token_baseline(rewards, mask, proxy, _others)


# A completion's reward.


def _checked(rewards, mask) -> tuple[Array, Array]:
    mask = require_mask(mask, "P G T")
    (rewards,) = accumulators(rewards=rewards)
    require_rank("rewards", rewards, "P G", "P G T")
    require_shape(mask.shape[: rewards.ndim], "mask's leading axes" if rewards.ndim == 2 else "mask", rewards=rewards)
    return rewards, mask


def _outcomes(rewards, mask) -> tuple[Array, Array, Array, Array]:
    """The mask, R less one present member's (so that equal rewards are exact zeros), present [P, G] and N [P, 1]."""
    rewards, mask = _checked(rewards, mask)
    present = jnp.any(mask, axis=-1)
    if rewards.ndim == 3:
        rewards = jnp.sum(jnp.where(mask, rewards, 0.0), axis=-1)
    centred = jnp.where(present, rewards - _greatest(rewards, present), 0.0)
    return mask, centred, present, jnp.sum(present, axis=1, keepdims=True).astype(centred.dtype)


def _greatest(values: Array, members: Array) -> Array:
    """The group's greatest value among the members, 0 where there are none.

    Less this, equal values are exact zeros, of which every weighted mean is an exact zero.
    """
    greatest = jnp.max(values, axis=1, keepdims=True, where=members, initial=-jnp.inf)
    return jnp.where(jnp.any(members, axis=1, keepdims=True), greatest, 0.0)


def _deviation(centred: Array, weights: Array, present: Array) -> Array:
    """Values less their weighted mean over the group, 0 where absent."""
    weights = weights.astype(centred.dtype)
    weight = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.sum(weights * centred, axis=1, keepdims=True) / jnp.maximum(weight, 1)
    return jnp.where(present, centred - mean, 0.0)


def _spread(values: Array, mask: Array) -> Array:
    return jnp.where(mask, values[..., None], 0.0)


# Token baselines, on tokens packed so that column t − 1 holds ordinal t.


def _token_baseline(rewards, mask, proxy, sum_over: Callable) -> Array:
    rewards, mask = _checked(rewards, mask)
    proxy = jnp.asarray(proxy)
    require_shape(mask.shape, "mask", proxy=proxy)
    rewards, proxy = accumulators(rewards=rewards, proxy=proxy)
    order = jnp.argsort(~mask, axis=-1, stable=True)  # trained tokens first, in order
    alive = jnp.take_along_axis(mask, order, axis=-1)
    returns = _returns(rewards, mask)
    returns, proxy = (jnp.take_along_axis(x, order, axis=-1) for x in (returns, proxy))
    energy = jnp.cumsum(jnp.where(alive, jnp.maximum(proxy, 0.0), 0.0), axis=-1)

    advantages = _less_mean(returns, energy, alive, sum_over)
    alone = _others(alive.astype(energy.dtype)) == 0
    advantages = jnp.where(alive, jnp.where(alone, _less_last_mean(returns, energy, alive), advantages), 0.0)
    ordinal = jnp.maximum(_segments.ordinal(mask) - 1, 0)
    return jnp.where(mask, jnp.take_along_axis(advantages, ordinal, axis=-1), 0.0)


def _returns(rewards: Array, mask: Array) -> Array:
    """G_t [P, G, T]: the outcome at every token, or a dense reward's sum from the token on."""
    if rewards.ndim == 2:
        return jnp.broadcast_to(rewards[..., None], mask.shape)
    return lax.cumsum(jnp.where(mask, rewards, 0.0), axis=2, reverse=True)


def _less_mean(returns: Array, energy: Array, alive: Array, sum_over: Callable) -> Array:
    """G_t less the energy-weighted mean of the members alive that `sum_over` takes in."""
    returns = jnp.where(alive, returns - _greatest(returns, alive), 0.0)
    return returns - _weighted_mean(returns, energy, alive, sum_over)


def _less_last_mean(returns: Array, energy: Array, alive: Array) -> Array:
    """G_t less the energy-weighted mean of the others at their own last tokens; 0 where there are no others."""
    last = jnp.maximum(jnp.sum(alive, axis=-1, keepdims=True) - 1, 0)
    last_return, last_energy = (jnp.take_along_axis(x, last, axis=-1) for x in (returns, energy))
    present = alive[..., :1]
    greatest = _greatest(last_return, present)
    values = jnp.where(present, last_return - greatest, 0.0)
    baseline = _weighted_mean(values, last_energy, present, _others)
    has_others = _others(present.astype(energy.dtype)) > 0
    return jnp.where(has_others & alive, returns - greatest - baseline, 0.0)


def _weighted_mean(values: Array, weights: Array, alive: Array, sum_over: Callable) -> Array:
    """Σ w x / Σ w over the members alive, their plain mean where Σ w = 0, and 0 where there are none."""
    members = alive.astype(values.dtype)
    weights = jnp.where(alive, weights, 0.0)
    total, count = sum_over(weights), sum_over(members)
    weighted = sum_over(weights * values) / jnp.where(total > 0, total, 1.0)
    plain = sum_over(members * values) / jnp.maximum(count, 1)
    return jnp.where(total > 0, weighted, plain)


def _everyone(x: Array) -> Array:
    """Σ over the group, on each member."""
    return jnp.broadcast_to(jnp.sum(x, axis=1, keepdims=True), x.shape)


def _others(x: Array) -> Array:
    """Σ over the group without the member itself: never a total less one's own, which would leave rounding behind."""
    others = 1 - jnp.eye(x.shape[1], dtype=x.dtype)
    return jnp.einsum("ij,pjt->pit", others, x, precision=lax.Precision.HIGHEST)
