"""Weighted sums over the tokens of a batch, in which only the first array is differentiated."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from rljax import objective
from rljax._checks import accumulators, require_shape
from rljax.objective import Batch

Tokens = Float[Array, "*B T"]


def trained(batch: Batch) -> Bool[Array, "*B T"]:
    """True at the trained tokens: mask true, and a segment id that is not 0."""
    return objective.trained(batch.mask, batch.segment_ids)


def weighted(batch: Batch, **arrays) -> tuple[Array, ...]:
    """(*arrays, weights, live): live is true at trained tokens of weight ≠ 0, and the arrays are 0 elsewhere.

    The arrays are converted to one dtype; only the first has a gradient.
    """
    mask = trained(batch)
    require_shape(mask.shape, "mask", weights=batch.weights, **arrays)
    *arrays, weights = accumulators(**arrays, weights=batch.weights)
    live = mask & (weights != 0)
    prediction, *constants, weights = (jnp.where(live, x, 0.0) for x in (*arrays, weights))
    return prediction, *lax.stop_gradient((*constants, weights)), live


def weighted_sum(weights: Array, x: Array, live: Array) -> Array:
    return jnp.sum(weights * jnp.where(live, x, 0.0))
