"""Shared by the TPU kernels: the tiles of each TPU generation, their VMEM limits, and which tiles are visited.

Hidden states and weight stay as they are in HBM, of any sizes: the last block of either hangs over the array's end, and
what it holds there is anything, NaN included. Only vectors of N, which are small, are padded to whole tiles.
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
WIDTH = 4096  # the D of the table
SPARE = 8 * 2**20  # bytes of VMEM for what the compiler puts there
NARROW = 256  # a tile's side from which on the other is made smaller first
FAR = -(2**30)  # a target that no column is, however it is counted


class Generation(NamedTuple):
    """The tiles of each pass, for D = `WIDTH` in bfloat16; a larger D or dtype makes them smaller.

    `part` is how many columns of logits the pass of the sums makes at a time.
    """

    sums: Tile
    hidden: Tile
    weight: Tile
    part: int
    vmem: int = 56 * 2**20  # bytes that a kernel may ask for


# The best of those tried by static schedules at (N, D, V) = (4096, 4096, 151936), benchmarks/tpu_static.py --search.
GENERATIONS = {
    "v5e": Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=128),
    "v5p": Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=128),
    "v6e": Generation(sums=Tile(1024, 1024), hidden=Tile(1024, 512), weight=Tile(512, 1024), part=256),
    "7x": Generation(sums=Tile(1024, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=256),
}
ANY = Generation(sums=Tile(512, 512), hidden=Tile(512, 512), weight=Tile(512, 512), part=256)  # fits all of these


def generation() -> Generation:
    """That of the device, or of the abstract mesh, that a program is traced for."""
    try:
        info = pltpu.get_tpu_info()
    except ValueError:  # traced elsewhere, for a TPU that is not known yet
        return ANY
    return GENERATIONS.get(str(info.chip_version), ANY)._replace(vmem=info.vmem_capacity_bytes // 8 * 7)


def fitted(tile: Tile | None, best: Tile, stays: str, hidden, head: Head, bytes_of: Callable, vmem: int) -> Tile:
    """The tile given, in multiples of 128 and no larger than the arrays, else the best one made to fit.

    It has to fit VMEM, of which the kernel takes `bytes_of(tile)`, and be no more work than at `WIDTH` in bfloat16, as
    the compiler unrolls it (a product in float32 is six in bfloat16).  The side that passes by is halved first: what is
    read from HBM depends on the one that stays.
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
    """The least multiple of the unit that is not below the size."""
    return -(-size // unit) * unit


# --------------------------------------------------------------------------------------------- which tiles are visited


class Visits(NamedTuple):
    """What is prefetched to SMEM: which tiles a kernel computes, and the scalars of the logits.

    A tile of tokens with nothing to learn, or of padding alone, is not computed. Its step asks for the block that is
    there already, and so costs no DMA.
    """

    present: Int[Array, " tiles"]  # how many of a tile's tokens have something to learn
    held: Int[Array, " tiles"]  # the last tile of tokens up to here that is computed
    size: Int[Array, " 1"]  # of the head
    scale: Float[Array, " 3"]  # β, c (1 without a soft cap), and the logit z of a banned token

    def computes(self, i, first):
        """Whether the tile of tokens i by the columns from `first` on is computed."""
        return (self.present[i] > 0) & (first < self.size[0])

    def tokens(self, i):
        return self.held[i]

    def columns(self, j, tile: int):
        return jnp.minimum(j, self.last(tile))

    def last(self, tile: int):
        """The last tile of the vocabulary that is computed."""
        return lax.div(jnp.maximum(self.size[0] - 1, 0), jnp.int32(tile))  # `//` would ask for the device's kind


def visits(head: Head, targets, tokens: int) -> Visits:
    """Of targets [N], in tiles of so many tokens."""
    rows = padded(targets, tokens, ABSENT).reshape(-1, tokens)
    present = jnp.sum(rows != ABSENT, axis=1, dtype=jnp.int32)
    held = lax.cummax(jnp.where(present > 0, jnp.arange(rows.shape[0], dtype=jnp.int32), 0))
    cap = jnp.ones_like(head.beta) if head.softcap is None else head.softcap
    size = jnp.asarray(head.size, jnp.int32).reshape(1)
    scale = jnp.stack([head.beta, cap, BANNED / head.beta]).astype(jnp.float32)
    return Visits(present, held, size, scale)


def padded(vector, unit: int, value):
    """[N] with the value after its end, up to a multiple of the unit."""
    return jnp.pad(vector, (0, whole(vector.shape[0], unit) - vector.shape[0]), constant_values=value)


def bias_row(head: Head, columns: int):
    """The bias as [1, V] in float32, padded to tiles of so many columns, and 0 at what is none."""
    assert head.bias is not None
    b = padded(head.bias.astype(jnp.float32), columns, 0)
    return jnp.where(jnp.arange(b.shape[0], dtype=jnp.int32) < head.size, b, 0)[None]


def is_ragged(head: Head, columns: int) -> bool:
    """Whether some tile of so many columns may hold what is no column."""
    return not isinstance(head.size, int) or head.size % columns > 0


# ----------------------------------------------------------------------------------------------------- within a kernel


def dot(a, b, contract: tuple[int, int], common):
    """The product in float32; float32 itself is not rounded to bfloat16 on the way."""
    precision = lax.Precision.HIGHEST if common == jnp.float32 else lax.Precision.DEFAULT
    axes = ((contract[0],), (contract[1],)), ((), ())
    return lax.dot_general(
        a.astype(common), b.astype(common), axes, precision=precision, preferred_element_type=jnp.float32
    )


def in_all_lanes(row):
    """[1, n] as a column in each lane, [n, 128]."""
    return jnp.transpose(jnp.broadcast_to(row, (LANES, row.shape[1])))


def counted(shape: tuple[int, ...], axis: int):
    return lax.broadcasted_iota(jnp.int32, shape, axis)


# ------------------------------------------------------------------------------------------------------ around a kernel


def common_dtype(hidden, head: Head) -> Any:
    """Raises TypeError if a TPU has no products of it."""
    common = dtypes(hidden, head.unembedding)[0]
    require_products(common)
    return common


def require_products(common) -> None:
    """Raises TypeError if a TPU has no products of the dtype."""
    fits = common in (jnp.bfloat16, jnp.float32)
    require(fits, "token_stats", "hidden with unembedding", f"of dtype {common}", "bfloat16 or float32", TypeError)


def like(source, shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    """An output's type, varying over the axes of a shard_map as its source does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(source).manual_axis_type)


def cost(products: int, hidden, head: Head, tile: Tile, inner: str, exponentials: int) -> pl.CostEstimate:
    """Of so many products of N·D·V; what the inner grid dimension runs over is read once for each outer tile."""
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    h, w = n * d * hidden.dtype.itemsize, v * d * head.unembedding.dtype.itemsize
    outer = pl.cdiv(n, tile.tokens) if inner == "vocabulary" else pl.cdiv(v, tile.vocabulary)
    moved = h + outer * w if inner == "vocabulary" else w + outer * h
    return pl.CostEstimate(flops=2 * products * n * d * v, transcendentals=exponentials * n * v, bytes_accessed=moved)
