"""Loops over tiles that cover [N, V] of any size without padded copies, and the logits and masks of one tile."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._vocabulary.statistics import scaled
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, dtypes

LOGITS = 15 * 2**16  # logits per tile
WIDEST = 512  # columns per tile


def fitted(tile: Tile | None, hidden, head: Head) -> tuple[Tile, int, int]:
    """(tile, N, V): the given tile or the default one, clipped to [N, V].

    V is the number of columns to visit: without padding if the head's size is static, else all rows of the weight.
    """
    n, rows = hidden.shape[0], head.unembedding.shape[0]
    v = head.size if isinstance(head.size, int) else rows
    tile = tile or best_tile(n, v)
    return Tile(min(tile.tokens, n), min(tile.vocabulary, v)), n, v


def best_tile(tokens: int, vocabulary: int) -> Tile:
    """One tile for at most 4·`LOGITS` logits, else nearly equal tiles of about `LOGITS` logits each."""
    if tokens * vocabulary <= 4 * LOGITS:
        return Tile(tokens, vocabulary)
    columns = even(vocabulary, WIDEST)
    return Tile(even(tokens, LOGITS // columns), columns)


def even(size: int, limit: int) -> int:
    """The smallest tile side that needs no more tiles than `limit`: `size` if one suffices, else a multiple of 8."""
    parts = -(-size // limit)
    return size if parts <= 1 else min(limit, -(-size // parts // 8) * 8)


def cover(size: int, tile: int, body, carry) -> Any:
    """Scans carry = body(start, fresh, carry) over tiles that cover range(size).

    The last tile starts at size − tile. `fresh` [tile] is false at rows of the tile before it; None without overlap.
    """
    if tile == size:
        return body(0, None, carry)

    def step(carry, index):
        start = jnp.minimum(index * tile, size - tile)
        fresh = start + jnp.arange(tile, dtype=jnp.int32) >= index * tile if size % tile else None
        return body(start, fresh, carry), None

    return lax.scan(step, carry, jnp.arange(-(-size // tile), dtype=jnp.int32))[0]


def sliced(tree, start, size: int):
    return jax.tree.map(lambda whole: lax.dynamic_slice_in_dim(whole, start, size), tree)


def put(tree, parts, start):
    return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, 0), tree, parts)


def part_of(head: Head, first, columns: int) -> Head:
    """The head restricted to columns first:first + columns."""
    w, b = sliced((head.unembedding, head.bias), first, columns)
    return head._replace(unembedding=w, bias=b, size=head.size - first)


def logits(h, part: Head):
    """(x [n, v], (∂x/∂z)/β or None), as in `scaled`, of hidden states h [n, D] and the head of one tile."""
    common, accumulator = dtypes(h, part.unembedding)
    w = part.unembedding.astype(common)
    z = jnp.einsum("nd,vd->nv", h.astype(common), w, preferred_element_type=accumulator)
    if part.bias is not None:
        z = z + part.bias[None].astype(accumulator)
    return scaled(z, part.beta, part.softcap)


def is_target(y, first, columns: int):
    """[n, v], true at each row's target; targets y [n] count from the head's first column."""
    return y[:, None] == (first + jnp.arange(columns, dtype=jnp.int32))[None]


def is_column(head: Head, part: Head, unseen):
    """[1, v], true at columns that are not padding and `unseen` (`fresh` of `cover`); None if that holds for all."""
    inside = None
    if not isinstance(head.size, int):
        inside = jnp.arange(part.unembedding.shape[0], dtype=jnp.int32) < part.size
    known = both(unseen, inside)
    return None if known is None else known[None]


def both(one, other):
    """one & other; None stands for all true."""
    return one if other is None else other if one is None else one & other


def present_rows(h, y):
    """h with zeros in rows without a target, so that their values (even NaN) do not reach ∂W."""
    return jnp.where((y != ABSENT)[:, None], h, 0)


def unless_absent(y, compute, nothing):
    """compute(), or `nothing` if no row of the tile has a target."""
    return lax.cond(jnp.any(y != ABSENT), compute, lambda: nothing)
