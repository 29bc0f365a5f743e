"""Compiles one kernel of token_stats for a small grid of tiles; run by `tpu_static.py` as a subprocess."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tpu_cases
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tpu_chips import CHIPS, compile_for

from pallas_kernels._vocabulary.statistics import Slope
from pallas_kernels._vocabulary.types import Head, Tile
from pallas_kernels.token_stats import tpu
from pallas_kernels.token_stats.tpu import backward_hidden, backward_weight, generations


class Kernel(NamedTuple):
    run: Callable  # (hidden, head, targets, slope, tile) -> arrays
    products: int  # number of matrix products of 2·N·D·V operations
    outer: str  # the outer grid axis, whose tiles stay in VMEM: "tokens" or "vocabulary"

    def traffic(self, tile: Tile, n: int, d: int, v: int) -> float:
        """Bytes read from and written to HBM, in bfloat16."""
        hidden, weight = 2 * n * d, 2 * v * d
        gradient = self.products > 1
        if self.outer == "tokens":
            return (1 + gradient) * hidden + n / tile.tokens * weight
        return (1 + gradient) * weight + v / tile.vocabulary * hidden


KERNELS = {
    "sums": Kernel(lambda h, head, y, slope, tile: tpu.sums(h, head, y, tile), 1, "tokens"),
    "hidden": Kernel(
        lambda h, head, y, slope, tile: tpu.hidden_gradient(h, head, y, slope, tile, h.dtype), 2, "tokens"
    ),
    "weight": Kernel(lambda h, head, y, slope, tile: tpu.weight_gradient(h, head, y, slope, tile)[0], 2, "vocabulary"),
}


def compile_one(name: str, chip: str, *numbers: str) -> None:
    """Compiles a kernel; `numbers` are tokens and columns per tile, D, and the numbers of tiles along both axes."""
    tokens, columns, d, r, c = map(int, numbers)
    n, v = r * tokens, c * columns
    visit_every_tile(c)
    read_from_hbm()

    def run(hidden, unembedding, beta, targets, slope):
        head = Head(unembedding, None, beta, None, v)
        return KERNELS[name].run(hidden, head, targets, slope, Tile(tokens, columns))

    of, f32 = jax.ShapeDtypeStruct, jnp.float32
    hidden, unembedding, targets, _ = tpu_cases.inputs(n, d, v)
    coefficients: Any = [of((n,), f32)] * len(Slope._fields)
    compile_for(CHIPS[chip], run, (hidden, unembedding, of((), f32), targets, Slope(*coefficients)))


def visit_every_tile(columns: int) -> None:
    """Computes all `columns` tiles of V and sets no rows to 0, since the estimate counts all branches as taken."""
    backward_hidden.zero_unless = backward_weight.zero_unless = lambda *rows: None
    known = {
        "computes": lambda plan, i, first: True,
        "tokens": lambda plan, i: i,
        "columns": lambda plan, j, tile: j,
        "last": lambda plan, tile: columns - 1,
    }
    for name, method in known.items():
        setattr(generations.Visits, name, method)


def read_from_hbm() -> None:
    """Places kernel arguments in HBM; the compiler would keep small arrays in VMEM, for which it has no estimate."""
    pallas_call = pl.pallas_call

    def constrained(*arguments, **options):
        run = pallas_call(*arguments, **options)
        return lambda *arrays: run(*(pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in arrays))

    pl.pallas_call = constrained


if __name__ == "__main__":
    compile_one(*sys.argv[1:])
