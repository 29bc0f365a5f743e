"""Sums, means and extrema over sequences, with padding, packing and holes.

`segments [*B, T]` is a boolean mask with one sequence per row, or integer ids: equal non-zero ids in a row form one
sequence, contiguous except for zeros. A zero marks a token that the policy did not choose (padding, or the output of a
tool within a completion). Such a token is skipped, and its result is 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels import segmented_cummin, segmented_cumsum

Segments = Bool[Array, "*B T"] | Int[Array, "*B T"]


def trained(segments: Segments) -> Bool[Array, "*B T"]:
    """True at the tokens that the policy chose."""
    return segments.astype(jnp.bool_)


def cumulative(x: Float[Array, "*B T"], segments: Segments) -> Float[Array, "*B T"]:
    """Σ_{j≤t} x_j over the sequence of token t."""
    return segmented_cumsum(x, segments)


def total(x: Float[Array, "*B T"], segments: Segments) -> Float[Array, "*B T"]:
    """Σ_j x_j over the sequence, at each of its tokens; `[*B, 1]` for a mask, whose rows are one sequence each."""
    if segments.dtype == jnp.bool_:  # a row is one sequence, so no scan is needed
        return jnp.sum(x, axis=-1, keepdims=True, where=segments)
    return segmented_cumsum(x, segments) + segmented_cumsum(x, segments, reverse=True, exclusive=True)


def mean(x: Float[Array, "*B T"], segments: Segments) -> Float[Array, "*B T"]:
    """The mean of x over the sequence, in the shape of `total`."""
    return total(x, segments) / jnp.maximum(total(jnp.ones_like(x), segments), 1)


def maximum(x: Float[Array, "*B T"], segments: Segments) -> Float[Array, "*B T"]:
    """max_j x_j over the sequence, in the shape of `total`; −∞ if it is empty. Not differentiable."""
    if segments.dtype == jnp.bool_:
        return jnp.max(x, axis=-1, keepdims=True, where=segments, initial=-jnp.inf)
    up_to, from_here = (segmented_cummin(-x, segments, reverse=reverse) for reverse in (False, True))
    return -jnp.minimum(up_to, from_here)


def minimum_before(x: Float[Array, "*B T"], segments: Segments) -> Float[Array, "*B T"]:
    """min_{j<t} x_j over the sequence of token t; 0 at its first token. Not differentiable."""
    return jnp.where(ordinal(segments) > 1, segmented_cummin(x, segments, exclusive=True), 0.0)


def ordinal(segments: Segments) -> Int[Array, "*B T"]:
    """1 at the first trained token of a sequence, 2 at the second, …; 0 at untrained tokens."""
    counts = trained(segments).astype(jnp.float32)
    if segments.dtype == jnp.bool_:
        return jnp.where(segments, row_cumulative(counts).astype(jnp.int32), 0)
    return segmented_cumsum(counts, segments).astype(jnp.int32)


def row_cumulative(x: Float[Array, "*B T"]) -> Float[Array, "*B T"]:
    """Σ_{j≤t} x_j along the row, for finite x, by products of 64 tokens with a triangular matrix."""
    sharding = jax.typeof(x).sharding
    if axes := sharding.mesh.explicit_axes:  # axes split over explicit mesh axes cannot be reshaped
        automatic: Callable = jax.sharding.auto_axes(row_cumulative, axes=axes, out_sharding=sharding)
        return automatic(x)
    count = -(-x.shape[-1] // 64)
    tiles = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 64)]).reshape(*x.shape[:-1], count, 64)
    within = jnp.matmul(tiles, jnp.triu(jnp.ones((64, 64), x.dtype)), precision=lax.Precision.HIGHEST)
    totals = within[..., -1:]
    return (within + jnp.cumsum(totals, axis=-2) - totals).reshape(*x.shape[:-1], 64 * count)[..., : x.shape[-1]]
