"""How [N, V] is covered by tiles of any sizes, without a padded copy of anything, and what one tile is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._vocabulary.statistics import scaled
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, dtypes

LOGITS = 15 * 2**16  # held at a time
WIDEST = 512  # columns


def fitted(tile: Tile | None, hidden, head: Head) -> tuple[Tile, int, int]:
    """(the tile, N, V): the one given or the best one, no larger than what it covers.

    V is the number of columns to look at: without padding, where that is known when the program is traced.
    """
    n, rows = hidden.shape[0], head.unembedding.shape[0]
    v = head.size if isinstance(head.size, int) else rows
    tile = tile or best_tile(n, v)
    return Tile(min(tile.tokens, n), min(tile.vocabulary, v)), n, v


def best_tile(tokens: int, vocabulary: int) -> Tile:
    """One tile, and so no loop, where the logits are few; else tiles of about `LOGITS` logits and nearly equal size."""
    if tokens * vocabulary <= 4 * LOGITS:
        return Tile(tokens, vocabulary)
    columns = even(vocabulary, WIDEST)
    return Tile(even(tokens, LOGITS // columns), columns)


def even(size: int, limit: int) -> int:
    """The tile, a multiple of 8 where it is not all, that covers `size` in as few parts as `limit` does."""
    parts = -(-size // limit)
    return size if parts <= 1 else min(limit, -(-size // parts // 8) * 8)


def cover(size: int, tile: int, body, carry) -> Any:
    """carry = body(start, fresh, carry) for the tiles that cover range(size), `fresh` [tile] where not seen before.

    The last tile starts early, at size − tile, where its first part is not fresh. None says that all is, of any tile.
    """
    if tile == size:
        return body(0, None, carry)

    def step(carry, index):
        start = jnp.minimum(index * tile, size - tile)
        fresh = start + jnp.arange(tile, dtype=jnp.int32) >= index * tile if size % tile else None
        return body(start, fresh, carry), None

    return lax.scan(step, carry, jnp.arange(-(-size // tile), dtype=jnp.int32))[0]


def sliced(tree, start, size: int):
    """Rows `start` to start + size of every array."""
    return jax.tree.map(lambda whole: lax.dynamic_slice_in_dim(whole, start, size), tree)


def put(tree, parts, start):
    """The arrays with `parts` as their rows from `start` on."""
    return jax.tree.map(lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, 0), tree, parts)


def part_of(head: Head, first, columns: int) -> Head:
    """The head of the `columns` from `first` on."""
    w, b = sliced((head.unembedding, head.bias), first, columns)
    return head._replace(unembedding=w, bias=b, size=head.size - first)


def logits(h, part: Head):
    """(x, ∂x/∂z/β) of a tile."""
    common, accumulator = dtypes(h, part.unembedding)
    w = part.unembedding.astype(common)
    z = jnp.einsum("nd,vd->nv", h.astype(common), w, preferred_element_type=accumulator)
    if part.bias is not None:
        z = z + part.bias[None].astype(accumulator)
    return scaled(z, part.beta, part.softcap)


def is_target(y, first, columns: int):
    """[n, v], of targets counted from the head's first column."""
    return y[:, None] == (first + jnp.arange(columns, dtype=jnp.int32))[None]


def is_column(head: Head, part: Head, unseen):
    """[1, v], true at columns of the part that are neither padding nor seen before; None if all are."""
    inside = None
    if not isinstance(head.size, int):
        inside = jnp.arange(part.unembedding.shape[0], dtype=jnp.int32) < part.size
    known = both(unseen, inside)
    return None if known is None else known[None]


def both(one, other):
    """one & other, where None is true everywhere."""
    return one if other is None else other if one is None else one & other


def present_rows(h, y):
    """h with rows of zeros where there is no target: whatever stands there must not reach ∂W."""
    return jnp.where((y != ABSENT)[:, None], h, 0)


def unless_absent(y, compute, nothing):
    """compute(), or `nothing` for a tile of rows that are all absent."""
    return lax.cond(jnp.any(y != ABSENT), compute, lambda: nothing)
