"""Weighted sums over a batch's tokens."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import accumulators, require_mask, require_shape
from rljax.objective import Batch

Tokens = Float[Array, "*B T"]


def weighted(batch: Batch, **arrays) -> tuple[Array, ...]:
    """The arrays in the dtype of sums and 0 outside the mask, then the weights, and where they count."""
    mask = require_mask(batch.mask)
    require_shape(mask.shape, "mask", weights=batch.weights, **arrays)
    *arrays, weights = accumulators(**arrays, weights=batch.weights)
    live = mask & (weights != 0)
    return *(jnp.where(live, x, 0.0) for x in arrays), lax.stop_gradient(jnp.where(live, weights, 0.0)), live


def weighted_sum(weights: Array, x: Array, live: Array) -> Array:
    """Σ w x over the tokens that count."""
    return jnp.sum(weights * jnp.where(live, x, 0.0))
