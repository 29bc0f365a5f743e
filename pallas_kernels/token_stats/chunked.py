"""token_stats over tiles of tokens × vocabulary, on any device: the logits [N, V] never exist, forward or backward.

The mathematics is in `_statistics`, the backward pass's loops are in `_gradients`.  Neither N nor V need be a multiple
of its tile: the last one starts early, and what it sees a second time counts nothing.  A tile of tokens with nothing
to learn is skipped.
"""

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.token_stats._gradients import tiled_gradients
from pallas_kernels.token_stats._statistics import Slope, Sums, absorbed, no_columns, slope_at
from pallas_kernels.token_stats._tiles import (
    both,
    cover,
    fitted,
    is_column,
    is_target,
    logits,
    part_of,
    present_rows,
    put,
    sliced,
    unless_absent,
)
from pallas_kernels.token_stats._types import Head, Tile


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    """The sums over all columns of the head, [N] each; those of no columns where a whole tile is ABSENT."""
    tile, n, v = fitted(tile, hidden, head)

    def rows(start, _, found):
        y, h = sliced((targets, hidden), start, tile.tokens)
        h = present_rows(h, y)

        def columns(first, unseen, sums):
            part = part_of(head, first, tile.vocabulary)
            known, x = is_column(head, part, unseen), logits(h, part)[0]
            chosen = both(is_target(y, first, tile.vocabulary), known)
            return absorbed(sums, x, chosen, known, _target_of(x, y - first, unseen))

        nothing = no_columns(y, head.beta.dtype)
        visit = lambda: cover(v, tile.vocabulary, columns, nothing)  # noqa: E731
        return put(found, visit() if tile.tokens == n else unless_absent(y, visit, nothing), start)

    return cover(n, tile.tokens, rows, no_columns(targets, head.beta.dtype))


def _target_of(x, place, unseen):
    """x[place] of each row [n], 0 where that is not in the tile, or has been seen."""
    clipped = jnp.clip(place, 0, x.shape[1] - 1)
    here = both(clipped == place, None if unseen is None else unseen[clipped])
    return jnp.where(here, jnp.take_along_axis(x, clipped[:, None], axis=1)[:, 0], 0)


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None, products=None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias); `dtype` and `products` as in `_gradients`."""
    tile, _, _ = fitted(tile, hidden, head)

    def slope_of(start, first, y, h, part):
        x, uncapped = logits(h, part)
        own = jax.tree.map(lambda c: c[:, None], sliced(slope, start, tile.tokens))
        dz = slope_at(own, x, is_target(y, first, tile.vocabulary))
        return dz if uncapped is None else dz * uncapped

    return tiled_gradients(tile, hidden, head, targets, slope_of, dtype, products)
