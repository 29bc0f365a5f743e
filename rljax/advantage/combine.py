"""Advantages built from other advantages or from several rewards."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from rljax._checks import accumulators, require_mask, require_rank, require_shape
from rljax._expression import combinator
from rljax._guards import alike, rounding_of
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, deviation, outcomes, spread_of, trained
from rljax.aggregation import side
from rljax.objective import required_fields, requiring


@combinator
def standardized(advantage: Callable) -> Callable:
    """Divides an `advantage` by the std of its group's rewards.

        A = advantage(rewards, mask) / (std R + 1e-6)

    Returns an advantage that requires the same keywords. `standardized(mean_baseline)` is `group_relative`. `whitened`
    divides by the std of the whole batch.

    >>> from rljax.advantage import pass_at_k
    >>> print(standardized(pass_at_k)(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # 2 over √2
    [[[1.4142 1.4142 1.4142]
      [0.     0.     0.    ]]]
    """

    def over_std(rewards: Rewards, mask: Mask, **bound) -> Advantages:
        mask, centered, present, count = outcomes(rewards, mask)
        std = spread_of(centered, present, count)[..., None]
        return trained(advantage(rewards, mask, **bound) / (std + 1e-6), mask)

    return requiring(required_fields(advantage), over_std)


@combinator
def whitened(advantage: Callable) -> Callable:
    """Standardizes an `advantage` over the trained tokens of the batch; see `whiten`.

        A ← (A − µ)/√(σ² + 1e-8)

    Returns an advantage that requires the same keywords. µ and σ are over the whole array: call the result on the
    global rollout, outside `shard_map`. `standardized` uses each group's std.

    >>> from rljax.advantage import mean_baseline
    >>> print(whitened(mean_baseline)(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """

    def over_batch(rewards: Rewards, mask: Mask, **bound) -> Advantages:
        return whiten(advantage(rewards, mask, **bound), mask)

    return requiring(required_fields(advantage), over_batch)


def whiten(x: Float[Array, "*B T"], mask: Array) -> Float[Array, "*B T"]:
    """Standardizes `x` over the trained tokens.

        (x − µ)/√(σ² + 1e-8)

    `x`, the boolean `mask` and the result are [..., T]. µ and σ² are the mean and the variance (divided by n − 1) of
    the n trained values. The result is 0 at untrained tokens, and everywhere if the trained values are equal up to
    rounding. `whitened` applies `whiten` to an advantage.

    >>> print(whiten(jnp.array([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]]), jnp.ones((1, 2, 3), bool)))  # over √(10/5)
    [[[-1.4142 -0.7071  0.    ]
      [ 0.      0.7071  1.4142]]]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", x=x)
    (x,) = accumulators(x=x)
    count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    x = jnp.where(mask & ~alike(x, mask), x - jnp.max(x, where=mask, initial=-jnp.inf), 0.0)
    x = jnp.where(mask, x - jnp.sum(x) / count, 0.0)
    return trained(x / jnp.sqrt(jnp.sum(x**2) / jnp.maximum(count - 1, 1) + 1e-8), mask)


@combinator
def without_negatives(advantage: Callable) -> Callable:
    """Sets an `advantage` to 0 on negative completions while the state `dropping` is true (AEPO, 2512.12967).

        A ← 0 if dropping and the mean of A over the completion's trained tokens is negative

    Returns an advantage that requires the keywords of `advantage` and `dropping`, a boolean scalar that
    `carried.entropy_hysteresis` updates. `penalty.confident_negatives` drops single tokens.

    >>> from rljax.advantage import leave_one_out
    >>> rewards, mask = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 1), bool)
    >>> without_negatives(leave_one_out)(rewards, mask, dropping=jnp.array(True)).tolist()
    [[[1.0], [0.0]]]
    """

    def unless_dropped(rewards: Rewards, mask: Mask, *, dropping: Bool[Array, ""], **bound) -> Advantages:
        A, mask = advantage(rewards, mask, **bound), require_mask(mask)
        return trained(jnp.where(jnp.asarray(dropping) & (side(A, mask) < 0)[..., None], 0.0, A), mask)

    return requiring(required_fields(advantage) | {"dropping"}, unless_dropped)


def multi_reward(
    rewards: Rewards, mask: Mask, *, components: Float[Array, "P G K"], coefficients: Float[Array, "K"] | None = None
) -> Advantages:
    """GDPO's advantage: several rewards are standardized within the group, and their sum is whitened over the batch.

        A = whiten(Σ_k c_k · (R_k − mean R_k)/std R_k)

    Takes `rewards` (not read) [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. A reward that is constant
    in the group adds 0, and a sum that cancels up to rounding is 0. Nothing is added to the std, so the scale of each
    reward does not matter, unlike in `group_relative` of the sum.

    Args:
      components: R_k, the rewards [P, G, K].
      coefficients: c_k, [K]; None for ones.

    >>> components = jnp.array([[[1.0, 0.0], [0.0, 100.0]]])  # R₁ = 1, 0 and R₂ = 0, 100 count the same
    >>> multi_reward(jnp.zeros((1, 2)), jnp.ones((1, 2, 3), bool), components=components).tolist()
    [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    _, mask = checked(rewards, mask)
    (components,) = accumulators(components=components)
    require_rank("components", components, "P G K")
    require_shape(mask.shape[:2], "mask's leading axes", components=components[..., 0])
    c = jnp.ones(components.shape[-1]) if coefficients is None else jnp.asarray(coefficients)
    require_shape(components.shape[-1:], "components' last axis", coefficients=c)
    terms = [c[k].astype(components.dtype) * _standard(components[..., k], mask) for k in range(c.shape[0])]
    zeros = jnp.zeros(mask.shape[:2], components.dtype)
    total, size = sum(terms, zeros), sum(map(jnp.abs, terms), zeros)
    total = jnp.where(jnp.abs(total) <= rounding_of(size), 0.0, total)
    return whiten(jnp.broadcast_to(total[..., None], mask.shape), mask)


def _standard(rewards: Array, mask: Array) -> Array:
    """(R − mean R)/std R [P, G]; 0 if the rewards of the group are equal."""
    _, centered, present, count = outcomes(rewards, mask)
    std = spread_of(centered, present, count)
    return deviation(centered, present, present) / jnp.where(std == 0, 1.0, std)
