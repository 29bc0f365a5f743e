"""token_stats over tiles of tokens × vocabulary under XLA, for any device; the logits [N, V] are never stored.

Formulas and backward pass are in `_vocabulary`. Tiles of tokens that all have no target are skipped.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels._vocabulary.gradients import tiled_gradients
from pallas_kernels._vocabulary.statistics import Slope, Sums, absorbed, no_columns, slope_at
from pallas_kernels._vocabulary.tiles import (
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
from pallas_kernels._vocabulary.types import Head, Tile


class Seen(NamedTuple):
    """A tile of logits x [n, v], whose columns start at `first`.

    `is_target` [n, v] marks each row's target and `target` [n] is x at the target, 0 if it is not in this tile.
    `is_column` [1, v] is false at padding and at columns of earlier tiles; None is true everywhere.
    """

    x: Array
    first: int | Array
    target: Array
    is_target: Array
    is_column: Array | None


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    """The sums over all columns of the head, [N] each; `no_columns` in the rows of skipped tiles."""
    return over_columns(hidden, head, targets, tile, partial(no_columns, dtype=head.beta.dtype), absorb)


def absorb(sums: Sums, seen: Seen) -> Sums:
    return absorbed(sums, seen.x, seen.is_target, seen.is_column, seen.target)


def over_columns(hidden: Array, head: Head, targets: Array, tile: Tile | None, nothing: Callable, add: Callable):
    """Accumulators of every row, [N, …], after `accumulators = add(accumulators, seen)` for each tile of logits.

    `nothing(y)` returns the initial accumulators of rows with targets y [n]; rows of a skipped tile keep them.
    """
    tile, n, v = fitted(tile, hidden, head)

    def rows(start, _, found):
        y, h = sliced((targets, hidden), start, tile.tokens)
        h = present_rows(h, y)

        def columns(first, unseen, known):
            part = part_of(head, first, tile.vocabulary)
            column, x = is_column(head, part, unseen), logits(h, part)[0]
            is_chosen = both(is_target(y, first, tile.vocabulary), column)
            return add(known, Seen(x, first, _target_of(x, y - first, unseen), is_chosen, column))

        visit = lambda: cover(v, tile.vocabulary, columns, nothing(y))  # noqa: E731
        return put(found, visit() if tile.tokens == n else unless_absent(y, visit, nothing(y)), start)

    return cover(n, tile.tokens, rows, nothing(targets))


def _target_of(x, place, unseen):
    """x[n, place[n]] for each row n, [n]; 0 if `place` is outside of the tile or in a column of an earlier tile."""
    clipped = jnp.clip(place, 0, x.shape[1] - 1)
    here = both(clipped == place, None if unseen is None else unseen[clipped])
    return jnp.where(here, jnp.take_along_axis(x, clipped[:, None], axis=1)[:, 0], 0)


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None, products=None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias); `dtype` and `products` are those of `tiled_gradients`."""
    tile, _, _ = fitted(tile, hidden, head)

    def slope_of(start, first, y, h, part):
        x, uncapped = logits(h, part)
        own = jax.tree.map(lambda c: c[:, None], sliced(slope, start, tile.tokens))
        dz = slope_at(own, x, is_target(y, first, tile.vocabulary))
        return dz if uncapped is None else dz * uncapped

    return tiled_gradients(tile, hidden, head, targets, slope_of, dtype, products)
