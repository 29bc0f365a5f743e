"""Parts shared by advantages: rewards of completions, group statistics, rewards-to-go, and results on tokens."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax._checks import accumulators, require_mask, require_rank, require_shape
from rljax._guards import alike
from rljax._sharding import gathered

Rewards = Float[Array, "P G"] | Float[Array, "P G T"]
Mask = Bool[Array, "P G T"]
Advantages = Float[Array, "P G T"]


def checked(rewards, mask) -> tuple[Array, Array]:
    mask = require_mask(mask, "P G T")
    (rewards,) = accumulators(rewards=rewards)
    require_rank("rewards", rewards, "P G", "P G T")
    require_shape(mask.shape[: rewards.ndim], "mask's leading axes" if rewards.ndim == 2 else "mask", rewards=rewards)
    return rewards, mask


def outcomes(rewards, mask) -> tuple[Array, Array, Array, Array]:
    """The mask, R minus the largest R of its group (`less_greatest`), present [P, G] and N [P, 1]."""
    rewards, mask = checked(rewards, mask)
    rewards, present = totals(rewards, mask), jnp.any(mask, axis=-1)
    centered = less_greatest(rewards, present)
    return mask, centered, present, jnp.sum(present, axis=1, keepdims=True).astype(centered.dtype)


def totals(rewards: Array, mask: Array) -> Array:
    """R [P, G], the sum of a dense reward."""
    return rewards if rewards.ndim == 2 else jnp.sum(jnp.where(mask, rewards, 0.0), axis=-1)


def less_greatest(values: Array, members: Array) -> Array:
    """Members' values minus their maximum (axis 1); exactly 0 if all are equal up to rounding; 0 for nonmembers."""
    largest = jnp.max(values, axis=1, keepdims=True, where=members, initial=-jnp.inf)
    return jnp.where(members & ~alike(values, members, axis=1), values - largest, 0.0)


def deviation(centered: Array, weights: Array, present: Array) -> Array:
    """Values minus their weighted mean over the group, 0 for absent completions."""
    weights = weights.astype(centered.dtype)
    weight = jnp.sum(weights, axis=1, keepdims=True)
    mean = jnp.sum(weights * centered, axis=1, keepdims=True) / jnp.maximum(weight, 1)
    return jnp.where(present, centered - mean, 0.0)


def spread_of(centered: Array, present: Array, count: Array) -> Array:
    """Standard deviation of the group (divided by N − 1), [P, 1]; 0 for a group of one."""
    deviations = deviation(centered, present, present)
    return jnp.sqrt(jnp.sum(deviations**2, axis=1, keepdims=True) / jnp.maximum(count - 1, 1))


def trained(values: Array, mask: Array) -> Array:
    """The values [P, G, T] at the trained tokens, 0 elsewhere, without gradient."""
    return lax.stop_gradient(jnp.where(mask, values, 0.0))


def on_tokens(values: Array, mask: Array) -> Array:
    """A value per completion [P, G] at each of its trained tokens, as in `trained`."""
    return trained(values[..., None], mask)


def returns_of(rewards: Array, mask: Array) -> Array:
    """G_t [P, G, T]: the outcome at every token, or the sum of a dense reward from token t on."""
    if rewards.ndim == 2:
        return jnp.broadcast_to(rewards[..., None], mask.shape)
    return lax.cumsum(gathered(jnp.where(mask, rewards, 0.0), 2), axis=2, reverse=True)
