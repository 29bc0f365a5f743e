"""token_stats over tiles of tokens × vocabulary, on any device: the logits [N, V] never exist, forward or backward.

The mathematics is in `_statistics`, the backward pass's loops are in `_gradients`.  Neither N nor V need be a multiple
of its tile: the last one starts early, and what it sees a second time counts nothing.  A tile of tokens with nothing
to learn is skipped.
"""

from collections.abc import Callable
from functools import partial

import jax
from jax import Array

from pallas_kernels.token_stats._gradients import tiled_gradients
from pallas_kernels.token_stats._statistics import Slope, Sums, absorbed, no_columns, slope_at
from pallas_kernels.token_stats._tiles import (
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

    def absorb(sums, x, _, is_target, is_column):
        return absorbed(sums, x, is_target, is_column)

    return over_columns(hidden, head, targets, tile, partial(no_columns, dtype=head.beta.dtype), absorb)


def over_columns(hidden: Array, head: Head, targets: Array, tile: Tile | None, nothing: Callable, absorb: Callable):
    """What is known of each row, [N, …], once all tiles of the head's columns are absorbed.

    It begins as `nothing(y)` for the targets y of some rows, and stays so where a whole tile of them is ABSENT;
    `absorb(known, x, first, is_target, is_column)` adds a tile x [n, v] of the columns from `first` on.
    """
    n, v = hidden.shape[0], head.unembedding.shape[0]
    tile = fitted(tile, n, v)

    def rows(start, _, found):
        y, h = sliced((targets, hidden), start, tile.tokens)
        h = present_rows(h, y)

        def columns(first, unseen, known):
            part = part_of(head, first, tile.vocabulary)
            column = is_column(part, unseen)
            target = column & is_target(y, first, tile.vocabulary)
            return absorb(known, logits(h, part)[0], first, target, column)

        visit = lambda: cover(v, tile.vocabulary, columns, nothing(y))  # noqa: E731
        return put(found, visit() if tile.tokens == n else unless_absent(y, visit, nothing(y)), start)

    return cover(n, tile.tokens, rows, nothing(targets))


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None, products=None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias); `dtype` and `products` as in `_gradients`."""
    tile = fitted(tile, hidden.shape[0], head.unembedding.shape[0])

    def slope_of(start, first, y, h, part):
        x, uncapped = logits(h, part)
        own = jax.tree.map(lambda c: c[:, None], sliced(slope, start, tile.tokens))
        dz = slope_at(own, x, is_target(y, first, tile.vocabulary))
        return dz if uncapped is None else dz * uncapped

    return tiled_gradients(tile, hidden, head, targets, slope_of, dtype, products)
