"""Optimal token baselines: one per position, weighted by the energy W_t of each completion up to that position."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax import _segments
from rljax._checks import accumulators, require_mask, require_shape
from rljax._sharding import gathered
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, less_greatest, returns_of, trained

Tokens = Float[Array, "P G T"]


def optimal_token_baseline(
    rewards: Rewards, mask: Mask, *, proxy: Tokens, importance: Tokens | None = None
) -> Advantages:
    """OTB's advantage: the reward-to-go minus the group's energy-weighted mean at the same position t (2602.07078).

        A_{i,t} = G_{i,t} − B_t,    B_t = Σ_i G_{i,t} W_{i,t} / Σ_i W_{i,t},    W_t = Σ_{j≤t} m_j e_j w̄_j²

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. The sums of B_t are over the
    completions with n_i ≥ t; if Σ W = 0, B_t is their plain mean. If only one completion has n_i ≥ t, its B_t is the
    energy-weighted mean of the others at their last tokens (in the paper's code, B_t is either G_t, so A = 0, or 0).
    B_t includes completion i, so A is biased: in groups of 4 its variance is lower than that of `leave_one_out` mostly
    because the bias shrinks the gradient (docs/claims.md). `leave_one_out_token_baseline` is unbiased.

    Args:
      proxy: e_t = 1 − 2π(y_t) + Σ_v π(v)², [P, G, T], the squared norm of ∂ log π/∂ logits; floored at 0.
      importance: w̄, truncated importance weights [P, G, T] (see `correction`); None for ones.

    >>> proxy = jnp.array([[[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]])  # B = (4 + 1 + 0)/4
    >>> optimal_token_baseline(jnp.array([[4.0, 1.0, 0.0]]), jnp.ones((1, 3, 2), bool), proxy=proxy).tolist()
    [[[2.75, 2.75], [-0.25, -0.25], [-1.25, -1.25]]]
    """
    return _token_baseline(rewards, mask, partial(_energy, proxy, importance), _everyone)


def leave_one_out_token_baseline(
    rewards: Rewards, mask: Mask, *, proxy: Tokens, importance: Tokens | None = None
) -> Advantages:
    """The unbiased form of `optimal_token_baseline`: completion i is excluded from its own baseline (2602.07078).

        A_{i,t} = G_{i,t} − Σ_{j≠i} G_{j,t} W_{j,t} / Σ_{j≠i} W_{j,t},    j over completions with n_j ≥ t

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `proxy` and `importance` are as in
    `optimal_token_baseline`. Compared with `leave_one_out`, the variance is lower in large groups (docs/claims.md).

    >>> proxy = jnp.array([[[0.5, 0.5], [0.5, 0.5], [1.5, 1.5]]])  # B = 1/4, 4/4, 5/2
    >>> leave_one_out_token_baseline(jnp.array([[4.0, 1.0, 0.0]]), jnp.ones((1, 3, 2), bool), proxy=proxy).tolist()
    [[[3.75, 3.75], [0.0, 0.0], [-2.5, -2.5]]]
    """
    return _token_baseline(rewards, mask, partial(_energy, proxy, importance), _others)


def exact_energy_baseline(rewards: Rewards, mask: Mask, *, energy: Tokens) -> Advantages:
    """The form of `optimal_token_baseline` whose energy W_t is given, not computed from proxies (2602.07078).

        A_{i,t} = G_{i,t} − Σ_j G_{j,t} W_{j,t} / Σ_j W_{j,t},    j over completions with n_j ≥ t

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `energy` is W_t [P, G, T]; negative
    values count as 0, and ones give the plain mean over these completions. The proxies approximate ‖Σ_{j≤t} ∇ log
    π(y_j)‖², which is close to the optimal weight but not equal to it (docs/claims.md).

    >>> energy = jnp.array([[[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]])  # B = 5/4, 9/4
    >>> exact_energy_baseline(jnp.array([[4.0, 1.0, 0.0]]), jnp.ones((1, 3, 2), bool), energy=energy).tolist()
    [[[2.75, 1.75], [-0.25, -1.25], [-1.25, -2.25]]]
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape, "mask", energy=energy)
    (energy,) = accumulators(energy=energy)
    energy = gathered(energy, 1, 2)
    return _token_baseline(rewards, mask, partial(_held, jnp.maximum(energy, 0.0)), _everyone)


# Below, a column of an array is one position t of all members of a group; W and G are constant after a member's end.


def _energy(proxy, importance, mask) -> Array:
    """W_t = Σ_{j≤t} m_j e_j w̄_j²."""
    mask, proxy = require_mask(mask, "P G T"), jnp.asarray(proxy)
    importance = jnp.ones_like(proxy) if importance is None else importance
    require_shape(mask.shape, "mask", proxy=proxy, importance=importance)
    proxy, importance = accumulators(proxy=proxy, importance=importance)
    return _segments.row_cumulative(gathered(jnp.where(mask, jnp.maximum(proxy, 0.0) * importance**2, 0.0), 1, 2))


def _held(x: Array, mask: Array) -> Array:
    """x, continued with the value at the member's last token where the mask is false; 0 for a member without tokens."""
    last = x.shape[-1] - 1 - jnp.argmax(mask[..., ::-1], axis=-1, keepdims=True)
    at_last = jnp.where(jnp.any(mask, axis=-1, keepdims=True), jnp.take_along_axis(x, last, axis=-1), 0.0)
    return jnp.where(mask, x, at_last)


def _token_baseline(rewards, mask, energy: Callable, sum_over: Callable) -> Array:
    """A = G − B, [P, G, T]; `energy(mask)` returns W, and `sum_over` sums over the members of the baseline."""
    rewards, mask = checked(rewards, mask)
    rewards, mask = gathered(rewards, 1), gathered(mask, 1, 2)
    returns = rewards[..., None] if rewards.ndim == 2 else _held(returns_of(rewards, mask), mask)

    def by_column():
        return _less_mean(returns, energy(mask), mask, sum_over)

    def by_ordinal():
        order = jnp.argsort(~mask, axis=-1, stable=True)  # trained tokens first: column t − 1 holds position t
        wide = (jnp.broadcast_to(returns, mask.shape), _held(energy(mask), mask), mask)
        G, W, alive = (jnp.take_along_axis(x, order, axis=-1) for x in wide)
        packed = _less_mean(G, W, alive, sum_over)
        return jnp.where(mask, jnp.take_along_axis(packed, jnp.maximum(_segments.ordinal(mask) - 1, 0), axis=-1), 0.0)

    return trained(lax.cond(_aligned(mask), by_column, by_ordinal), mask)


def _aligned(mask: Array) -> Array:
    """True if all completions of a group begin at the same column and have no holes: a column is then a position."""
    begins = mask & ~jnp.pad(mask, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    first = jnp.argmax(jnp.any(mask, axis=1, keepdims=True), axis=-1, keepdims=True)
    return ~jnp.any(begins & (jnp.arange(mask.shape[-1])[None, None] > first))


def _less_mean(returns: Array, energy: Array, alive: Array, sum_over: Callable) -> Array:
    """G_t minus the energy-weighted mean of `alive` members (with a token t), or of the others if only one is alive."""
    returns, energy = accumulators(returns=returns, energy=energy)
    present = jnp.any(alive, axis=-1, keepdims=True)
    count = jnp.sum(alive, axis=1, keepdims=True)
    among = jnp.where(count > 1, alive, present)
    members = among & ~((count == 1) & alive)
    seen = present if returns.shape == present.shape else among  # an outcome is the same at every position
    values = less_greatest(returns, seen)
    return jnp.where(alive, values - _weighted_mean(values, energy, members, sum_over), 0.0)


def _weighted_mean(values: Array, weights: Array, members: Array, sum_over: Callable) -> Array:
    """Σ w x / Σ w over the members; their plain mean if Σ w = 0, and 0 if there are no members."""
    one = jnp.ones_like(values)
    weights = jnp.where(members, weights, 0.0)
    total = sum_over(weights, one)
    weighted = sum_over(weights, values) / jnp.where(total == 0, 1.0, total)  # a NaN energy stays NaN

    def plain():
        equal = members.astype(values.dtype)
        return jnp.where(total == 0, sum_over(equal, values) / jnp.maximum(sum_over(equal, one), 1), weighted)

    return lax.cond(jnp.any((total == 0) & jnp.any(members, axis=1, keepdims=True)), plain, lambda: weighted)


def _everyone(weights: Array, values: Array) -> Array:
    """Σ w x over the group."""
    if values.shape[-1] == 1:  # an outcome: the same at every position
        return jnp.matmul(jnp.swapaxes(values, 1, 2), weights, precision=lax.Precision.HIGHEST)
    return jnp.sum(weights * values, axis=1, keepdims=True)


def _others(weights: Array, values: Array) -> Array:
    """Σ w x over the group without the member itself; subtracting from a total would leave rounding errors."""
    others = 1 - jnp.eye(weights.shape[1], dtype=weights.dtype)
    return jnp.einsum("ij,pjt->pit", others, weights * values, precision=lax.Precision.HIGHEST)
