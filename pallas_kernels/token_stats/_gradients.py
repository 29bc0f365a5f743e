"""Gradients of what reads logits tile by tile: ∂h = ∂x·W and ∂W = ∂xᵀ·h, with ∂x made anew in each tile."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from pallas_kernels.token_stats._tiles import cover
from pallas_kernels.token_stats._types import Tile


def tiled_gradients(tiles: Tile, hidden, unembedding, accumulator, rows_at: Callable):
    """(∂hidden, ∂unembedding), summed in the accumulator's dtype and returned in their own.

    `rows_at(start)` is (h, slope) of the tile of rows that begins there: its hidden states, zeros where there is
    nothing to learn, and `slope(first, w)`, ∂x [n, v] at the columns w that begin at `first`.
    """

    def rows(start, fresh, gradients):
        h, slope = rows_at(start)
        fresh_h = jnp.where(fresh[:, None], h, 0).astype(accumulator)

        def columns(first, unseen, gradients):
            dh, dw = gradients
            w = lax.dynamic_slice_in_dim(unembedding, first, tiles.vocabulary)
            dx = jnp.where(unseen[None], slope(first, w), 0)
            dh += jnp.einsum("nv,vd->nd", dx, w.astype(dx.dtype))
            part = lax.dynamic_slice_in_dim(dw, first, tiles.vocabulary) + jnp.einsum("nv,nd->vd", dx, fresh_h)
            return dh, lax.dynamic_update_slice_in_dim(dw, part, first, 0)

        whole, dw = gradients
        dh, dw = cover(unembedding.shape[0], tiles.vocabulary, columns, (jnp.zeros_like(h, accumulator), dw))
        return lax.dynamic_update_slice_in_dim(whole, dh.astype(hidden.dtype), start, 0), dw

    nothing = jnp.zeros_like(hidden), jnp.zeros_like(unembedding, accumulator)
    dh, dw = cover(hidden.shape[0], tiles.tokens, rows, nothing)
    return dh, dw.astype(unembedding.dtype)
