"""token_stats over tiles of tokens × vocabulary, on any device: the logits [N, V] never exist, forward or backward.

The mathematics is in `_statistics`.  Forward, each tile of tokens passes over the vocabulary.  Backward, each tile of
the vocabulary passes over the tokens,

    ∂h = ∂z·W summed in a carry,    ∂W = ∂zᵀ·h summed within the tile and written once,    ∂b = Σ_n ∂z

with ∂z in the inputs' dtype and sums in the accumulators'.  Neither N nor V need be a multiple of its tile: the last
one starts early, and what it sees a second time counts nothing.  A tile of tokens with nothing to learn is skipped.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels.token_stats._statistics import Slope, Sums, absorbed, no_columns, scaled, slope_at
from pallas_kernels.token_stats._tiles import best_tile, cover
from pallas_kernels.token_stats._types import ABSENT, Head, Tile, dtypes


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    """The sums over all columns of the head, [N] each; those of no columns where the target is ABSENT."""
    tokens, columns = _fitted(tile, hidden, head)

    def rows(start, _, results):
        y = lax.dynamic_slice_in_dim(targets, start, tokens)
        h = _present_rows(lax.dynamic_slice_in_dim(hidden, start, tokens), y)

        def tile_of(first, unseen, found):
            x, _ = _logits(h, _rows_of(head, first, columns))
            is_column = _is_column(head, first, unseen)
            return absorbed(found, x, is_column & _is_target(y, first, columns), is_column)

        def compute():
            return cover(head.unembedding.shape[0], columns, tile_of, no_columns(y, x_dtype))

        found = _where_any(y != ABSENT, compute, no_columns(y, x_dtype)) if tokens < n else compute()
        return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, 0), results, found)

    n, x_dtype = hidden.shape[0], head.beta.dtype
    return cover(n, tokens, rows, no_columns(targets, x_dtype))


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype: Any = None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias), in the dtypes of their own; ∂hidden in `dtype` where one is given."""
    tokens, columns = _fitted(tile, hidden, head)
    n, accumulator = hidden.shape[0], head.beta.dtype
    common = dtypes(hidden, head.unembedding)[0]

    def tile_of_columns(first, unseen, gradients):
        part = _rows_of(head, first, columns)

        def tile_of_rows(start, fresh, sums):
            y, own = jax.tree.map(lambda whole: lax.dynamic_slice_in_dim(whole, start, tokens), (targets, slope))
            y = jnp.where(fresh, y, ABSENT)
            h = _present_rows(lax.dynamic_slice_in_dim(hidden, start, tokens), y)

            def compute():
                x, uncapped = _logits(h, part)
                dz = slope_at(jax.tree.map(lambda c: c[:, None], own), x, _is_target(y, first, columns))
                dz = dz if uncapped is None else dz * uncapped
                keep = _is_column(head, first, unseen) & (y != ABSENT)[:, None]
                return _products(jnp.where(keep, dz, 0), h.astype(common), part)

            dh, *others = sums
            nothing = jax.tree.map(jnp.zeros_like, (lax.dynamic_slice_in_dim(dh, start, tokens), *others))
            dh_part, *parts = _where_any(y != ABSENT, compute, nothing) if tokens < n else compute()
            dh_part += lax.dynamic_slice_in_dim(dh, start, tokens)
            return lax.dynamic_update_slice_in_dim(dh, dh_part, start, 0), *map(jnp.add, others, parts)

        dh, *whole = gradients
        empty = [jnp.zeros_like(rows, accumulator) for rows in (part.unembedding, part.bias) if rows is not None]
        dh, *found = cover(n, tokens, tile_of_rows, (dh, *empty))
        return dh, *(_added(array, rows, first, unseen) for array, rows in zip(whole, found, strict=True))

    weights = [w for w in (head.unembedding, head.bias) if w is not None]
    start = jnp.zeros_like(hidden, accumulator), *map(jnp.zeros_like, weights)
    dh, dw, *db = cover(head.unembedding.shape[0], columns, tile_of_columns, start)
    return dh.astype(dtype or hidden.dtype), dw, db[0] if db else None


# ------------------------------------------------------------------------------------------------- one tile's parts


def _fitted(tile: Tile | None, hidden, head: Head) -> Tile:
    n, v = hidden.shape[0], head.unembedding.shape[0]
    tile = tile or best_tile(n, v)
    return Tile(min(tile.tokens, n), min(tile.vocabulary, v))


def _rows_of(head: Head, first, columns: int) -> Head:
    """The head of the `columns` from `first` on."""
    w, b = jax.tree.map(lambda rows: lax.dynamic_slice_in_dim(rows, first, columns), (head.unembedding, head.bias))
    return head._replace(unembedding=w, bias=b)


def _logits(h, head: Head):
    """(x, ∂x/∂z/β) of a tile."""
    common, accumulator = dtypes(h, head.unembedding)
    w = head.unembedding.astype(common)
    z = jnp.einsum("nd,vd->nv", h.astype(common), w, preferred_element_type=accumulator)
    if head.bias is not None:
        z = z + head.bias[None].astype(accumulator)
    return scaled(z, head.beta, head.softcap)


def _products(dz, h, head: Head) -> tuple[Array, ...]:
    """(∂h, ∂W, and ∂b where there is a bias) of a tile; the products take ∂z in the inputs' dtype."""
    cast = dz.astype(h.dtype)
    dh = jnp.einsum("nv,vd->nd", cast, head.unembedding.astype(h.dtype), preferred_element_type=dz.dtype)
    dw = jnp.einsum("nv,nd->vd", cast, h, preferred_element_type=dz.dtype)
    return (dh, dw) if head.bias is None else (dh, dw, jnp.sum(dz, axis=0))


def _is_target(y, first, columns: int):
    return y[:, None] == (first + jnp.arange(columns, dtype=jnp.int32))[None]


def _is_column(head: Head, first, unseen):
    """[1, v], true at columns that are neither padding nor seen before."""
    return (unseen & (first + jnp.arange(unseen.shape[0], dtype=jnp.int32) < head.size))[None]


def _present_rows(h, y):
    """h with rows of zeros where there is no target: whatever stands there must not reach ∂W."""
    return jnp.where((y != ABSENT)[:, None], h, 0)


def _where_any(present, compute: Callable, nothing):
    return lax.cond(jnp.any(present), compute, lambda: nothing)


def _added(whole, rows, first, unseen):
    """`whole` with the unseen ones of the rows that begin at `first`."""
    old = lax.dynamic_slice_in_dim(whole, first, unseen.shape[0])
    fresh = unseen.reshape(-1, *[1] * (rows.ndim - 1))
    return lax.dynamic_update_slice_in_dim(whole, jnp.where(fresh, rows.astype(whole.dtype), old), first, 0)
