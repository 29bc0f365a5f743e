"""Advantages made of advantages: over their group's std, whitened over the batch, one-sided, or of several rewards."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from rljax._checks import accumulators, require_mask, require_rank, require_shape
from rljax._expression import combinator
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, outcomes, spread_of
from rljax.advantage.group import group_relative
from rljax.aggregation import side
from rljax.objective import required_fields, requiring


@combinator
def standardised(advantage: Callable) -> Callable:
    """The advantage over the std of its group's rewards plus 1e-6: `standardised(mean_baseline)` is group_relative.

    >>> from rljax.advantage import pass_at_k
    >>> print(standardised(pass_at_k)(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # 2 over √2
    [[[1.4142 1.4142 1.4142]
      [0.     0.     0.    ]]]
    """

    def over_std(rewards: Rewards, mask: Mask, **bound) -> Advantages:
        mask, centred, present, count = outcomes(rewards, mask)
        std = spread_of(centred, present, count)[..., None]
        return jnp.where(mask, advantage(rewards, mask, **bound) / (std + 1e-6), 0.0)

    return requiring(required_fields(advantage), over_std)


@combinator
def whitened(advantage: Callable) -> Callable:
    """The advantage standardised over the batch's trained tokens: (A − µ)/√(σ² + 1e-8), σ² with n − 1.

    Statistics of the whole `[P, G, T]` it is called on: call it on the global rollout, outside of any `shard_map`.

    >>> from rljax.advantage import mean_baseline
    >>> print(whitened(mean_baseline)(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """

    def over_batch(rewards: Rewards, mask: Mask, **bound) -> Advantages:
        return whiten(advantage(rewards, mask, **bound), mask)

    return requiring(required_fields(advantage), over_batch)


def whiten(x: Float[Array, "*B T"], mask: Array) -> Float[Array, "*B T"]:
    """(x − µ)/√(σ² + 1e-8) over the trained tokens, 0 elsewhere; equal values give exactly 0.

    >>> print(whiten(jnp.array([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]]), jnp.ones((1, 2, 3), bool)))  # over √(10/5)
    [[[-1.4142 -0.7071  0.    ]
      [ 0.      0.7071  1.4142]]]
    """
    mask = require_mask(mask)
    require_shape(mask.shape, "mask", x=x)
    (x,) = accumulators(x=x)
    count = jnp.maximum(jnp.sum(mask), 1).astype(x.dtype)
    x = jnp.where(mask, x - jnp.max(x, where=mask, initial=-jnp.inf), 0.0)
    x = jnp.where(mask, x - jnp.sum(x) / count, 0.0)
    return x / jnp.sqrt(jnp.sum(x**2) / jnp.maximum(count - 1, 1) + 1e-8)


@combinator
def without_negatives(advantage: Callable) -> Callable:
    """The advantage, but 0 on completions of negative side while `dropping` is true (AEPO, 2512.12967).

    The side is the sign of a completion's mean advantage. `dropping` is written by
    `carried.entropy_hysteresis`.

    >>> from rljax.advantage import leave_one_out
    >>> rewards, mask = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 1), bool)
    >>> without_negatives(leave_one_out)(rewards, mask, dropping=jnp.array(True)).tolist()
    [[[1.0], [0.0]]]
    """

    def unless_dropped(rewards: Rewards, mask: Mask, *, dropping: Bool[Array, ""], **bound) -> Advantages:
        A = advantage(rewards, mask, **bound)
        return jnp.where(jnp.asarray(dropping) & (side(A, require_mask(mask)) < 0)[..., None], 0.0, A)

    return requiring(required_fields(advantage) | {"dropping"}, unless_dropped)


def multi_reward(
    rewards: Rewards, mask: Mask, *, components: Float[Array, "P G K"], coefficients: Float[Array, "K"] | None = None
) -> Advantages:
    """GDPO: each reward standardised within its group by itself, their weighted sum whitened over the batch.

        whiten(Σ_k c_k · group_relative(R_k))

    A reward of larger scale then does not drown the others. `components[..., k]` is R_k; c_k = 1 unless given.
    `rewards` itself is not read, its shape is checked.

    >>> components = jnp.array([[[1.0, 0.0], [0.0, 100.0]]])  # R₁ = 1, 0 and R₂ = 0, 100 are worth the same
    >>> multi_reward(jnp.zeros((1, 2)), jnp.ones((1, 2, 3), bool), components=components).tolist()
    [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    """
    _, mask = checked(rewards, mask)
    (components,) = accumulators(components=components)
    require_rank("components", components, "P G K")
    require_shape(mask.shape[:2], "mask's leading axes", components=components[..., 0])
    c = jnp.ones(components.shape[-1]) if coefficients is None else jnp.asarray(coefficients)
    require_shape(components.shape[-1:], "components' last axis", coefficients=c)
    standard = [group_relative(components[..., k], mask) for k in range(components.shape[-1])]
    total = jnp.zeros(mask.shape, components.dtype)
    return whiten(sum((c[k].astype(A.dtype) * A for k, A in enumerate(standard)), total), mask)
