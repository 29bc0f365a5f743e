"""Advantage from the tree of prefixes that the completions of a group share."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from rljax._checks import require_shape
from rljax._sharding import gathered
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, deviation, outcomes, spread_of, trained


def prefix_tree(rewards: Rewards, mask: Mask, *, tokens: Int[Array, "P G T"]) -> Advantages:
    """Outcome advantage plus the change in value that each token made, from prefixes shared in the group (TEMPO, P2T).

        A_{i,t} = [R_i − mean R + V(y_≤t) − V(y_<t)] / (std R + 1e-6)
        V(prefix) = mean R of the members that share it

    Takes `rewards` [P, G] or [P, G, T], `mask` and `tokens` [P, G, T]; returns A [P, G, T]. V of the empty prefix is
    mean R, and V of a prefix that only one completion has is that completion's R. Prefixes consist of trained tokens
    only; `tokens` holds token ids. All pairs are compared, in arrays [P, G, G, T]. `group_relative` has no term V.

    >>> tokens = jnp.array([[[5, 6, 8], [5, 7, 8]]])  # V: ½ for the empty prefix, then ½, 1, 1 and ½, 0, 0. Std √½
    >>> print(prefix_tree(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 3), bool), tokens=tokens))
    [[[ 0.7071  1.4142  0.7071]
      [-0.7071 -1.4142 -0.7071]]]
    """
    rewards, mask = checked(rewards, mask)
    require_shape(mask.shape, "mask", tokens=tokens)
    rewards, mask, tokens = gathered(rewards, 1), gathered(mask, 1, 2), gathered(jnp.asarray(tokens), 1, 2)
    mask, centered, present, count = outcomes(rewards, mask)
    order = jnp.argsort(~mask, axis=-1, stable=True)  # trained tokens first, in order
    alive, tokens = (jnp.take_along_axis(x, order, axis=-1) for x in (mask, tokens))
    same = (tokens[:, :, None] == tokens[:, None]) & alive[:, :, None] & alive[:, None]
    shared = lax.cumprod(same.astype(jnp.int8), axis=3).astype(centered.dtype)  # [P, i, j, t]: j has i's prefix
    total = jnp.einsum("pijt,pj->pit", shared, centered, precision=lax.Precision.HIGHEST)
    value = total / jnp.maximum(jnp.sum(shared, axis=2), 1)

    deviations = deviation(centered, present, present)[..., None]
    mean = jnp.where(present, centered, 0.0)[..., None] - deviations
    before = jnp.concatenate([mean, value[..., :-1]], axis=-1)
    std = spread_of(centered, present, count)[..., None]
    advantages = (deviations + value - before) / (std + 1e-6)
    ordinal = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    return trained(jnp.take_along_axis(advantages, ordinal, axis=-1), mask)
