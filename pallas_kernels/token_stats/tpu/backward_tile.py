"""Computation on one tile in both gradient kernels of token_stats: recompute z, form ∂L/∂z, multiply.

With the coefficients (a, c₀, c₁, c₂) of `statistics.Slope`, which include β, and π_v = e^(x_v − m − log S),

    ∂L/∂z_v = (a 1[v=y] + π_v (c₀ + c₁ log π_v + c₂ π_v)) · (1 − tanh²(z_v/c) with a soft cap c, else 1)
    ∂h = ∂z·W,      ∂W = ∂zᵀ·h,      ∂b = Σ_n ∂z

∂h and ∂W are computed in separate passes, so that each accumulator stays in VMEM in float32 and is written to HBM once.
Each pass recomputes the logits: forward and backward take 10·N·D·V operations instead of 8·N·D·V. Both passes run the
same code with h and W exchanged. A tile `a` [ra, D] stays in VMEM while the kernel visits all tiles `b` [rb, D]:

           b: rb rows                            ∂h pass: a = h, b = W     z  [tokens, columns]
         ┌────────────┐
    a    │ z = a·bᵀ   │ → ∂z·b is added to      ∂W pass: a = W, b = h     zᵀ [columns, tokens]
    rows │ in parts   │   the accumulator
         │ of rows    │   [ra, D]                Grid: (tiles of a, tiles of b), b innermost.
         └────────────┘

While the matrix unit computes the logits of one part of a's rows, the vector unit computes ∂z of the part before it.
Logits are not masked. Three rules replace a mask:

- The coefficients of tokens without a target are 0.
- Rows of b that may hold NaN or must not contribute (padding columns, rows past the end of the array) are set to 0 in
  VMEM in tiles that contain such rows. Their ∂z stays finite, since log π is clamped to at most 0, so ∂z·0 = 0.
- Rows of a past the end of the array spoil only their own rows of the accumulator, which are masked when written.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._vocabulary.statistics import Slope, scaled, slope_at
from pallas_kernels._vocabulary.types import ABSENT
from pallas_kernels.token_stats.tpu.generations import dot, padded

PART = 256  # rows of a per part: the logits of two parts are in VMEM
ROWS = 16  # rows of a part whose ∂z is computed in registers at a time: one bfloat16 register tile
CLEARED = 64  # rows set to zero per loop step


def accumulate(a, b, slope: Callable, logits, dz, total, common) -> None:
    """total += ∂z·b for a tile. `slope(row, z)` returns ∂z of the logits z [ROWS, rb] of rows row:row + ROWS of a.

    `logits` are two float32 buffers [part, rb], used in turn; `dz` is [part, rb] in the products' dtype `common`.
    """
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
    """∂L/∂z of logits z that include the bias."""
    x, uncapped = scaled(z, scale[0], scale[1] if capped else None)
    dx = slope_at(coefficients, x, is_target)
    return dx if uncapped is None else dx * uncapped


def zero_unless(keep: Callable, block) -> None:
    """Sets rows of a block in VMEM to 0 unless `keep(row)`, a mask [CLEARED, 1] of rows from `row` on, is true."""

    def some_rows(k, _):
        row = pl.multiple_of(k * CLEARED, CLEARED)
        rows = pl.ds(row, CLEARED)
        block[rows] = jnp.where(keep(row), block[rows], jnp.zeros((), block.dtype))

    lax.fori_loop(0, block.shape[0] // CLEARED, some_rows, None)


def coefficient_rows(slope: Slope, targets, tokens: int):
    """The coefficients that are not None as rows [k, N], padded to whole tiles; 0 for tokens without a target."""
    known = [jnp.where(targets == ABSENT, 0, c).astype(jnp.float32) for c in slope if c is not None]
    return jnp.stack([padded(c, tokens, 0) for c in known])


def from_rows(known: tuple[bool, bool], rows) -> Slope:
    """Inverse of `coefficient_rows`; `known` tells whether `log_pi` and `pi` are among the rows."""
    top, log_total, at_target, constant, *others = rows
    rest = iter(others)
    log_pi, pi = (next(rest) if there else None for there in known)
    return Slope(top, log_total, at_target, constant, log_pi, pi)


def scratch(rows: int, width: int, d: int, common) -> list:
    """Scratch for tiles a [rows, D] and b [width, D]: logits of two parts, ∂z of one part, and the accumulator."""
    part = part_of(rows)
    logits = pltpu.VMEM((part, width), jnp.float32)
    return [logits, logits, pltpu.VMEM((part, width), common), pltpu.VMEM((rows, d), jnp.float32)]


def scratch_bytes(rows: int, width: int, d: int, itemsize: int) -> int:
    return part_of(rows) * width * (8 + itemsize) + 4 * rows * d


def part_of(rows: int) -> int:
    return max(part for part in range(128, PART + 1, 128) if rows % part == 0)
