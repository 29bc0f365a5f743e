"""How [N, V] is covered by tiles, of any sizes and without a padded copy of anything."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

TILE = 2**20  # logits held at a time
WIDEST = 512  # columns


class Tiles(NamedTuple):
    """Rows and columns of a tile of logits."""

    tokens: int
    vocabulary: int


def best_tiles(tokens: int, vocabulary: int) -> Tiles:
    """One tile, and so no loop, where the logits are few; else tiles of about `TILE` logits and nearly equal size."""
    if tokens * vocabulary <= 4 * TILE:
        return Tiles(tokens, vocabulary)
    columns = _even(vocabulary, WIDEST)
    return Tiles(_even(tokens, TILE // columns), columns)


def _even(size: int, limit: int) -> int:
    """The tile, a multiple of 8 where it is not all, that covers `size` in as few parts as `limit` does."""
    parts = -(-size // limit)
    return size if parts <= 1 else min(limit, -(-size // parts // 8) * 8)


def cover(size: int, tile: int, body, carry) -> Any:
    """carry = body(start, fresh, carry) for the tiles that cover range(size), `fresh` [tile] where not seen before.

    The last tile starts early, at size − tile, where its first part is not fresh.
    """
    if tile == size:
        return body(0, jnp.ones(tile, bool), carry)

    def step(carry, index):
        start = jnp.minimum(index * tile, size - tile)
        return body(start, start + jnp.arange(tile, dtype=jnp.int32) >= index * tile, carry), None

    return lax.scan(step, carry, jnp.arange(-(-size // tile), dtype=jnp.int32))[0]
