"""Forward pass of token_stats on an NVIDIA GPU: a Triton kernel that keeps the logits in registers.

The kernel has never run on a GPU, only in Pallas' interpreter, so every time below is an estimate. It computes the
`statistics.Sums` of each token over one split of the vocabulary.

             vocabulary →
            ┌─────────┬─────────┐      One program handles a tile of nt tokens and one split of the vocabulary. It loops
    tokens  │ (0, 0) →│ (0, 1) →│      over tiles of vt columns (→): it computes their logits, D in steps of 128 bytes,
       ↓    │ (1, 0) →│ (1, 1) →│      and adds them to its sums, [nt] each.
            └─────────┴─────────┘

XLA joins the splits by rescaling their sums to the greatest maximum m. A group of tiles, `GROUP` tokens in all, visits
the splits together, so that its hidden states can stay in L2 and W be read from memory once per group.

The backward pass is `gpu_xla`. ∂h is summed over the vocabulary and ∂W over the tokens, so kernels without atomic
additions would compute the logits twice: four products of 2·N·D·V FLOP instead of three. At (N, D, V) = (8192, 4096,
151936) on an H100 they would save 14 bytes of memory traffic per logit (17 GB, about 5 ms) and add a product (10 ms at
peak).

With `TILE` (nt = 128, vt = 256), the logits take nt·vt·4 bytes = 128 KiB of registers (128 of the 255 per thread in 8
warps), and the sums 5·nt·4 bytes. Shared memory: 3 pipeline stages of (nt + vt)·128 bytes, 144 KiB of an H100's 227
KiB. jax 0.12 deprecates Pallas' Triton backend in favor of Mosaic GPU: lowering this kernel emits a warning.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pallas_kernels._dispatch import require
from pallas_kernels._vocabulary.statistics import BANNED, Slope, Sums, absorbed, no_columns, rescaled, scaled
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, dtypes
from pallas_kernels.token_stats import gpu_xla

PROGRAMS = 128  # concurrent programs: at most one for each of the 132 multiprocessors of an H100 or H200
GROUP = 2048  # tokens; at D = 4096 in bfloat16 their hidden states take 16 MiB of the 50 MiB L2 cache
TILE = Tile(128, 256)
SMALLEST = 16  # least side of a tensor core product


class Launch(NamedTuple):
    """Launch parameters: bytes of D per step (`width`), and Triton's `num_warps` and `num_stages`."""

    width: int = 128
    warps: int = 8
    stages: int = 3
    interpret: bool = False


LAUNCH = Launch()


class Grid(NamedTuple):
    """Order of programs: consecutive programs read the same tile of W, and a group reads the same hidden states."""

    tiles: int  # number of tiles of tokens
    group: int  # number of tiles of tokens that visit the vocabulary together
    splits: int  # number of splits of the vocabulary

    def place(self, program):
        """(index of the tile of tokens, index of the split of the vocabulary) of a program."""
        size = self.group * self.splits
        first, within = program // size * self.group, program % size
        height = jnp.minimum(self.tiles - first, self.group)  # the last group may have fewer tiles
        return first + within % height, within // height


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None, launch: Launch = LAUNCH) -> Sums:
    """The sums over all columns of the head, [N] each; arbitrary in rows whose target is ABSENT.

    Raises ValueError unless the tile's sides are powers of two of at least 16, TypeError for float64.
    """
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    common, accumulator = dtypes(hidden, head.unembedding)
    fits = accumulator == jnp.float32
    require(fits, "token_stats", "implementation", f"= 'gpu' for {common}", "None or 'chunked'", TypeError)
    block = _fitted(tile or TILE, n, v)
    width = min(launch.width // common.itemsize, _power_of_two(d))
    tiles = pl.cdiv(n, block.tokens)
    group = min(tiles, max(1, GROUP // block.tokens))
    grid = Grid(tiles, group, min(pl.cdiv(v, block.vocabulary), max(1, PROGRAMS // group)))

    cap = head.softcap if head.softcap is None else head.softcap[None]
    head = head._replace(size=jnp.asarray(head.size, jnp.int32)[None], beta=head.beta[None], softcap=cap)
    y = jnp.pad(targets, (0, tiles * block.tokens - n), constant_values=ABSENT)
    varying = jax.typeof(hidden).manual_axis_type
    with jax.named_scope("triton"):
        parts = pl.pallas_call(
            partial(_kernel, grid, block, width),
            out_shape=[jax.ShapeDtypeStruct((grid.splits, y.size), accumulator, manual_axis_type=varying)] * 5,
            grid=(grid.tiles * grid.splits,),
            in_specs=[
                pl.BlockSpec((block.tokens,), lambda program: grid.place(program)[:1]),
                *jax.tree.map(lambda x: pl.BlockSpec(memory_space=pl.ANY), (hidden, head)),
            ],
            out_specs=[pl.BlockSpec((None, block.tokens), lambda program: grid.place(program)[::-1])] * 5,
            compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
            interpret=launch.interpret,
            name="token_stats_sums",
        )(y, hidden, head)
    return jax.tree.map(lambda x: x[:n], _over_splits(Sums(*parts)))


def gradients(hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None):
    """`gpu_xla.gradients` with its default tile; `tile` applies to the forward kernel only."""
    return gpu_xla.gradients(hidden, head, targets, slope, None, dtype)


def _kernel(grid: Grid, block: Tile, width: int, y_ref, h_ref, head, *found_refs):
    """One program: writes the sums of a tile of tokens over one split of the vocabulary."""
    (rows, columns), d, v = block, h_ref.shape[1], head.unembedding.shape[0]
    common, accumulator = dtypes(h_ref, head.unembedding)
    tile, split = grid.place(pl.program_id(0))
    y, size, beta = y_ref[...], head.size[0], head.beta[0]
    softcap = head.softcap if head.softcap is None else head.softcap[0]

    def tile_of(index, found):
        first = index * columns
        v_here = first + jnp.arange(columns, dtype=jnp.int32)

        def product(step, z):
            h = _block(h_ref, tile * rows, rows, step * width, width).astype(common)
            w = _block(head.unembedding, first, columns, step * width, width).astype(common)
            return z + lax.dot_general(h, w, (((1,), (1,)), ((), ())), preferred_element_type=accumulator)

        z = lax.fori_loop(0, pl.cdiv(d, width), product, jnp.zeros((rows, columns), accumulator))
        if head.bias is not None:
            z = z + _part(head.bias, first, columns)[None].astype(accumulator)
        x, _ = scaled(z, beta, softcap)
        # Padding counts as banned: it adds e^(BANNED − m) = 0 as soon as m is the logit of a token that is not banned.
        x = jnp.where((v_here < size)[None], x, BANNED)
        return absorbed(found, x, y[:, None] == v_here[None])

    share = pl.cdiv(pl.cdiv(v, columns), grid.splits)
    begin = split * share
    end = jnp.minimum(begin + share, pl.cdiv(size, columns))
    end = jnp.where(jnp.max(y) > ABSENT, end, begin)
    found = lax.fori_loop(begin, end, tile_of, no_columns(y, accumulator))
    for ref, value in zip(found_refs, found, strict=True):
        ref[...] = value


def _block(ref, start, rows: int, first, width: int):
    """ref[start : start + rows, first : first + width], with zeros past the ends of ref."""
    n, d = ref.shape
    here = ref.at[pl.ds(start, rows), pl.ds(first, width)]
    inside = [None if n % rows == 0 else _inside(n, start, rows)[:, None]]
    inside += [None if d % width == 0 else _inside(d, first, width)[None]]
    masks = [jnp.broadcast_to(mask, (rows, width)) for mask in inside if mask is not None]
    return triton.load(here, mask=masks[0] & masks[-1], other=0) if masks else triton.load(here)


def _part(ref, start, size: int):
    """ref[start : start + size], with zeros past the end of ref."""
    here, (n,) = ref.at[pl.ds(start, size)], ref.shape
    return triton.load(here) if n % size == 0 else triton.load(here, mask=_inside(n, start, size), other=0)


def _inside(end: int, start, size: int):
    return start + jnp.arange(size, dtype=jnp.int32) < end


def _over_splits(parts: Sums) -> Sums:
    top = jnp.max(parts.top, axis=0)
    return Sums(top, *(jnp.sum(x, axis=0) for x in rescaled(parts, top[None])[1:]))


def _fitted(tile: Tile, n: int, v: int) -> Tile:
    """The tile, checked and shrunk to the least powers of two that cover [N, V]."""
    fits = all(side >= SMALLEST and side & (side - 1) == 0 for side in tile)
    remedy = f"two powers of two of at least {SMALLEST} for implementation 'gpu'"
    require(fits, "token_stats", "tile", f"= {tuple(tile)}", remedy)
    return Tile(min(tile.tokens, _power_of_two(n)), min(tile.vocabulary, _power_of_two(v)))


def _power_of_two(size: int) -> int:
    """The least power of two that is at least `size` and `SMALLEST`."""
    return max(SMALLEST, pl.next_power_of_2(size))
