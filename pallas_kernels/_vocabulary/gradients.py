"""Gradients of hidden states, unembedding and bias from ∂z = ∂L/∂z, which is computed tile by tile:

    ∂h = ∂z·W,    ∂W = ∂zᵀ·h,    ∂b = Σ_n ∂z

The outer loop over tiles of the vocabulary carries ∂h. The inner loop over tiles of tokens carries ∂W and ∂b of one
vocabulary tile. Sums and, by default, the factors of products have the accumulators' dtype: a bfloat16 ∂z loses digits.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels._vocabulary.tiles import (
    both,
    cover,
    fitted,
    is_column,
    part_of,
    present_rows,
    put,
    sliced,
    unless_absent,
)
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile


def tiled_gradients(
    tile: Tile | None, hidden, head: Head, targets, slope: Callable[..., Array], dtype=None, products=None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias), each in its input's dtype; ∂hidden in `dtype` if given.

    `products` is the dtype of the factors in matrix products, by default the accumulators'; devices whose matrix units
    are slow in float32 pass the inputs' dtype. `slope(start, first, y, h, part)` returns ∂z [n, v] of the tile whose
    first row is `start` and first column is `first`, with targets y [n], hidden states h [n, D] and head `part`.
    """
    tile, n, v = fitted(tile, hidden, head)
    accumulator = head.beta.dtype
    weights = head.unembedding, head.bias

    def columns(first, unseen, gradients):
        part = part_of(head, first, tile.vocabulary)

        def rows(start, fresh, sums):
            y = sliced(targets, start, tile.tokens)
            y = y if fresh is None else jnp.where(fresh, y, ABSENT)
            h = present_rows(sliced(hidden, start, tile.tokens), y)

            def compute():
                keep = both((y != ABSENT)[:, None], is_column(head, part, unseen))
                return _products(jnp.where(keep, slope(start, first, y, h, part), 0), h, part, products or accumulator)

            dh, *of_weights = sums
            nothing = jax.tree.map(jnp.zeros_like, (sliced(dh, start, tile.tokens), *of_weights))
            dh_part, *parts = compute() if tile.tokens == n else unless_absent(y, compute, nothing)
            dh = put(dh, sliced(dh, start, tile.tokens) + dh_part, start)
            return dh, *jax.tree.map(jnp.add, of_weights, parts)

        dh, old = gradients
        fresh_sums = jax.tree.map(lambda w: jnp.zeros_like(w, accumulator), (part.unembedding, part.bias))
        dh, *new = cover(n, tile.tokens, rows, (dh, *fresh_sums))
        return dh, _added(old, tuple(new), first, unseen)

    nothing = jnp.zeros_like(hidden, accumulator), jax.tree.map(jnp.zeros_like, weights)
    dh, (dw, db) = cover(v, tile.vocabulary, columns, nothing)
    return dh.astype(dtype or hidden.dtype), dw, db


def _products(dz, h, part: Head, dtype) -> tuple[Array, Array, Array | None]:
    """The contributions of one tile with slope dz [n, v] to (∂h, ∂W, ∂b)."""
    factor, h, w = (x.astype(dtype) for x in (dz, h, part.unembedding))
    reached = jnp.where(jnp.isinf(w), 0, w)  # an infinite row bans its token, so dz = 0; avoids 0·∞
    dh = jnp.einsum("nv,vd->nd", factor, reached, preferred_element_type=dz.dtype)
    dw = jnp.einsum("nv,nd->vd", factor, h, preferred_element_type=dz.dtype)
    return dh, dw, None if part.bias is None else jnp.sum(dz, axis=0)


def _added(whole, rows, first, unseen):
    """`whole` with `rows` written from index `first` on; rows that are not `unseen` keep their values."""

    def add(whole, rows):
        rows = rows.astype(whole.dtype)
        if unseen is not None:
            rows = jnp.where(unseen.reshape(-1, *[1] * (rows.ndim - 1)), rows, sliced(whole, first, rows.shape[0]))
        return put(whole, rows, first)

    return jax.tree.map(add, whole, rows)
