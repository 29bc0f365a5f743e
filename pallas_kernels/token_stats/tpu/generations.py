"""Tiles and VMEM limits of each TPU generation, and the tiles to visit; shared by the TPU kernels.

Only vectors of length N or V are padded to whole tiles. The last blocks of h and W may extend past the end of their
array, where their contents are undefined and may be NaN.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float, Int

from pallas_kernels._dispatch import require
from pallas_kernels._vocabulary.statistics import BANNED
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, dtypes

LANES = 128
SUBLANES = 8
WIDTH = 4096  # the D for which GENERATIONS was tuned
SPARE = 8 * 2**20  # bytes of VMEM left to the compiler
NARROW = 256  # `fitted` halves the resident side of a tile once the streaming side is this small
FAR = -(2**30)  # a target that matches no column, relative to any tile


class Generation(NamedTuple):
    """Tiles of each kernel for D = `WIDTH` in bfloat16; `fitted` shrinks them for a larger D or dtype.

    `part` is the number of columns per part in the forward kernel.
    """

    sums: Tile
    hidden: Tile
    weight: Tile
    part: int
    vmem: int = 56 * 2**20  # VMEM limit of a kernel in bytes


# Fastest by the compiler's estimate at (N, D, V) = (4096, 4096, 151936): `python benchmarks/tpu_static.py --search`.
GENERATIONS = {
    "v5e": Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=128),
    "v5p": Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=128),
    "v6e": Generation(sums=Tile(1024, 1024), hidden=Tile(1024, 512), weight=Tile(512, 1024), part=256),
    "7x": Generation(sums=Tile(1024, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=256),
}
ANY = Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=256)  # fits every generation


def generation() -> Generation:
    """The generation of the TPU, or of the abstract mesh, for which the program is traced; `ANY` if unknown."""
    try:
        info = pltpu.get_tpu_info()
    except ValueError:  # traced on another platform, without a TPU mesh
        return ANY
    return GENERATIONS.get(str(info.chip_version), ANY)._replace(vmem=info.vmem_capacity_bytes // 8 * 7)


def fitted(tile: Tile | None, best: Tile, stays: str, hidden, head: Head, bytes_of: Callable, vmem: int) -> Tile:
    """`tile` rounded up to multiples of 128 and clipped to the arrays; if None, `best` shrunk until it fits.

    `bytes_of(tile)` must fit in VMEM. The work per tile, which the compiler unrolls, must not exceed the work of `best`
    at D = `WIDTH` in bfloat16 (float32 counts four times). The streaming side is halved before the resident side
    `stays` ("tokens" or "vocabulary"), on which HBM traffic depends.
    """
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    most = Tile(whole(n, LANES), whole(v, LANES))
    if tile is not None:
        return Tile(*(min(whole(size, LANES), limit) for size, limit in zip(tile, most, strict=True)))
    passes = "vocabulary" if stays == "tokens" else "tokens"
    steps = d if common_dtype(hidden, head) == jnp.bfloat16 else 4 * d
    tile = Tile(*map(min, best, most))
    while max(tile) > LANES and (bytes_of(tile) > vmem - SPARE or math.prod(tile) * steps > math.prod(best) * WIDTH):
        side = passes if getattr(tile, passes) > NARROW or getattr(tile, stays) == LANES else stays
        tile = tile._replace(**{side: whole(getattr(tile, side) // 2, LANES)})
    return tile


def whole(size: int, unit: int) -> int:
    """`size` rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit


class Visits(NamedTuple):
    """Scalars prefetched to SMEM: the tiles that a kernel computes, and the parameters of the logits.

    A tile of tokens without targets, or of padding columns alone, is not computed. The index maps of its grid step
    return the block that is already in VMEM, so the step needs no DMA.
    """

    present: Int[Array, " tiles"]  # number of tokens with a target in each tile
    held: Int[Array, " tiles"]  # index of the last computed tile of tokens up to and including each tile
    size: Int[Array, " 1"]  # head.size: number of columns that are not padding
    scale: Float[Array, " 3"]  # β, c (1 without a soft cap), and the logit z of a banned token

    def computes(self, i, first):
        """True if the tile (tokens i, columns from `first` on) must be computed."""
        return (self.present[i] > 0) & (first < self.size[0])

    def tokens(self, i):
        return self.held[i]

    def columns(self, j, tile: int):
        return jnp.minimum(j, self.last(tile))

    def last(self, tile: int):
        """The last tile of the vocabulary that is computed."""
        return lax.div(jnp.maximum(self.size[0] - 1, 0), jnp.int32(tile))  # `//` would query the device kind


def visits(head: Head, targets, tokens: int) -> Visits:
    rows = padded(targets, tokens, ABSENT).reshape(-1, tokens)
    present = jnp.sum(rows != ABSENT, axis=1, dtype=jnp.int32)
    held = lax.cummax(jnp.where(present > 0, jnp.arange(rows.shape[0], dtype=jnp.int32), 0))
    cap = jnp.ones_like(head.beta) if head.softcap is None else head.softcap
    size = jnp.asarray(head.size, jnp.int32).reshape(1)
    scale = jnp.stack([head.beta, cap, BANNED / head.beta]).astype(jnp.float32)
    return Visits(present, held, size, scale)


def padded(vector, unit: int, value):
    return jnp.pad(vector, (0, whole(vector.shape[0], unit) - vector.shape[0]), constant_values=value)


def bias_row(head: Head, columns: int):
    """The bias as [1, V] in float32, padded to whole tiles of `columns`; 0 at padding."""
    assert head.bias is not None
    b = padded(head.bias.astype(jnp.float32), columns, 0)
    return jnp.where(jnp.arange(b.shape[0], dtype=jnp.int32) < head.size, b, 0)[None]


def is_ragged(head: Head, columns: int) -> bool:
    """True if a tile of `columns` may contain padding or rows past the end of the weight."""
    return not isinstance(head.size, int) or head.size % columns > 0


def dot(a, b, contract: tuple[int, int], common):
    """The product of a and b in float32, contracting axes `contract`; float32 factors are not rounded to bfloat16."""
    precision = lax.Precision.HIGHEST if common == jnp.float32 else lax.Precision.DEFAULT
    axes = ((contract[0],), (contract[1],)), ((), ())
    return lax.dot_general(
        a.astype(common), b.astype(common), axes, precision=precision, preferred_element_type=jnp.float32
    )


def in_all_lanes(row):
    """A row [1, n] as a column broadcast over all lanes, [n, 128]."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def counted(shape: tuple[int, ...], axis: int):
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def common_dtype(hidden, head: Head) -> Any:
    common = dtypes(hidden, head.unembedding)[0]
    require_products(common)
    return common


def require_products(common) -> None:
    """Raises TypeError unless the dtype is bfloat16 or float32."""
    fits = common in (jnp.bfloat16, jnp.float32)
    remedy = "bfloat16 or float32 for implementation 'tpu'"
    require(fits, "token_stats", "hidden and unembedding", f"have common dtype {common}", remedy, TypeError)


def like(source, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """The type of an output that varies over the same `shard_map` axes as `source`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(source).manual_axis_type)


def cost(products: int, hidden, head: Head, tile: Tile, inner: str, exponentials: int) -> pl.CostEstimate:
    """Cost of `products` matrix products; the operand of the `inner` grid axis is read once per outer tile."""
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    h, w = n * d * hidden.dtype.itemsize, v * d * head.unembedding.dtype.itemsize
    outer = pl.cdiv(n, tile.tokens) if inner == "vocabulary" else pl.cdiv(v, tile.vocabulary)
    moved = h + outer * w if inner == "vocabulary" else w + outer * h
    return pl.CostEstimate(flops=2 * products * n * d * v, transcendentals=exponentials * n * v, bytes_accessed=moved)
