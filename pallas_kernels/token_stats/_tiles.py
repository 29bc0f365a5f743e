"""How [N, V] is covered by tiles, of any sizes and without a padded copy of anything."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels.token_stats._types import Tile

LOGITS = 2**20  # held at a time
WIDEST = 512  # columns


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

    The last tile starts early, at size − tile, where its first part is not fresh.
    """
    if tile == size:
        return body(0, jnp.ones(tile, bool), carry)

    def step(carry, index):
        start = jnp.minimum(index * tile, size - tile)
        return body(start, start + jnp.arange(tile, dtype=jnp.int32) >= index * tile, carry), None

    return lax.scan(step, carry, jnp.arange(-(-size // tile), dtype=jnp.int32))[0]
