"""The tile that both gradients of token_stats share on a TPU: logits again, their slope, and one more product.

From the coefficients of `_statistics.Slope`, with π_v = e^(x_v − m − log S),

    ∂L/∂z_v = β (a 1[v=y] + π_v (c₀ + c₁ log π_v + c₂ π_v)) · (1 − tanh²(z_v/c), under a soft cap)
    ∂h = ∂z·W,      ∂W = ∂zᵀ·h,      ∂b = Σ_n ∂z

Each gradient is a pass of its own, so that its sum stays in VMEM, in float32, and is written once: the logits are made
twice, and forward and backward are 2 + 4 + 4 N·D·V in place of 2 + 2 + 2 + 2.  The two passes are the same with h and W
changing places. One tile `a` [ra, D] stays while all tiles `b` [rb, D] of the other pass by,

           b: rb rows                            ∂h: a = h, b = W          z  [tokens, columns]
         ┌────────────┐
    a    │ z = a·bᵀ   │ → ∂z·b added to         ∂W: a = W, b = h          zᵀ [columns, tokens]
    rows │ part by    │    the sum [ra, D]
         │ part       │                           Grid: (tiles of a, tiles of b), the latter innermost.
         └────────────┘

and while the matrix unit makes the logits of one part of a's rows, the vector unit has those of the part before.

No logit is masked.  The coefficients of tokens to be left out are zero.  Rows of b that may hold NaN, or are to have no
part in the sum (columns that are padding, what lies beyond an end), are set to zero in VMEM, in the few tiles that have
such; then whatever ∂z they have counts nothing, being finite: log π is at most 0.  Rows of a that are not there only
spoil their own sums, which are masked when they are written.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._vocabulary.statistics import Slope, scaled, slope_at
from pallas_kernels._vocabulary.types import ABSENT
from pallas_kernels.token_stats.tpu.generations import dot, padded

PART = 256  # rows of a, whose logits are made at a time
ROWS = 16  # rows of a part, whose slope is in registers at a time: a tile of bfloat16
CLEARED = 64  # rows that are set to zero at a time


def accumulate(a, b, slope: Callable, logits, dz, total, common) -> None:
    """total += ∂z·b.  `slope(row, z)` is ∂z of the logits z [ROWS, rb] of the rows of a that begin at `row`."""
    part = dz.shape[0]
    parts = a.shape[0] // part

    def rows_of(p):
        return pl.ds(p * part, part)

    for p in range(parts + 1):
        if p < parts:
            logits[p % 2][...] = dot(a[rows_of(p)], b[...], (1, 1), common)
        if p > 0:
            _slopes(p - 1, slope, logits[(p - 1) % 2], dz)
            total[rows_of(p - 1)] += dot(dz[...], b[...], (1, 0), common)


def _slopes(p: int, slope: Callable, logits, dz) -> None:
    def some_rows(k, _):
        rows = pl.ds(pl.multiple_of(k * ROWS, ROWS), ROWS)
        dz[rows] = slope(p * dz.shape[0] + k * ROWS, logits[rows]).astype(dz.dtype)

    lax.fori_loop(0, dz.shape[0] // ROWS, some_rows, None, unroll=True)


def slope_of_logits(z, coefficients: Slope, is_target, scale, capped: bool):
    """∂L/∂z of logits z, which the bias is in."""
    x, uncapped = scaled(z, scale[0], scale[1] if capped else None)
    dx = slope_at(coefficients, x, is_target)
    return dx if uncapped is None else dx * uncapped


def zero_unless(keep: Callable, block) -> None:
    """Sets rows of a block in VMEM to zero; `keep(row)` [CLEARED, 1] is true where those that begin at `row` stay."""

    def some_rows(k, _):
        row = pl.multiple_of(k * CLEARED, CLEARED)
        rows = pl.ds(row, CLEARED)
        block[rows] = jnp.where(keep(row), block[rows], jnp.zeros((), block.dtype))

    lax.fori_loop(0, block.shape[0] // CLEARED, some_rows, None)


def coefficient_rows(slope: Slope, targets, tokens: int):
    """The coefficients that are not None as rows, padded to tiles of so many tokens; zero where nothing is learned."""
    known = [jnp.where(targets == ABSENT, 0, c).astype(jnp.float32) for c in slope if c is not None]
    return jnp.stack([padded(c, tokens, 0) for c in known])


def from_rows(known: tuple[bool, bool], rows) -> Slope:
    """The coefficients, of which the last two are there if known."""
    top, log_total, at_target, constant, *others = rows
    rest = iter(others)
    log_pi, pi = (next(rest) if there else None for there in known)
    return Slope(top, log_total, at_target, constant, log_pi, pi)


def scratch(rows: int, width: int, d: int, common) -> list:
    """logits of two parts, ∂z of one, and the sum, for tiles of [rows, D] and [width, D]."""
    part = part_of(rows)
    logits = pltpu.VMEM((part, width), jnp.float32)
    return [logits, logits, pltpu.VMEM((part, width), common), pltpu.VMEM((rows, d), jnp.float32)]


def scratch_bytes(rows: int, width: int, d: int, itemsize: int) -> int:
    return part_of(rows) * width * (8 + itemsize) + 4 * rows * d


def part_of(rows: int) -> int:
    return max(part for part in range(128, PART + 1, 128) if rows % part == 0)
