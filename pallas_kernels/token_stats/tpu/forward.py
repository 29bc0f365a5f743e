"""TPU kernel for the forward sums: for each tile of nt tokens, one pass over tiles of vt columns.

For each token the kernel accumulates `statistics.Sums`, with m, x_y and moment in units of z = x/β, so that only
exponents are multiplied by β. The tile of logits is transposed, zᵀ = W·hᵀ: columns are in sublanes, tokens in lanes.

                tokens → (lanes)                 Each of the five sums is [8, nt]: its row r is over rows r, r + 8, …
              ┌───────────────┐                  of zᵀ. A register of logits (8 columns) is added elementwise to a
    columns   │ part 0        │  8 rows at a     register of sums, without a shuffle; sums are rescaled once per part.
       ↓      │ part 1        │  time, added     The 8 rows are joined after the last tile.
    (sublanes)└───────────────┘  to [8, nt]      Grid: (tiles of tokens, tiles of the vocabulary), vocabulary innermost.

A tile is computed in parts of rows of zᵀ. While the matrix unit computes one part, the vector unit adds the part before
it to the sums. The last part of a tile is added during the first part of the next tile, or at the end of the pass. The
logits z of banned tokens, of padding and of rows past the end of the weight are set to `floor`, where βz = `BANNED`:
they add e^(β(floor − m)) = 0 as soon as m is the logit of any other token.

VMEM holds the sums, two parts of logits, and double-buffered blocks of h, W, targets, bias and outputs; see `_bytes`.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._vocabulary.statistics import BANNED, Sums, rescaled
from pallas_kernels._vocabulary.types import Head, Tile
from pallas_kernels.token_stats.tpu.generations import (
    FAR,
    SUBLANES,
    Visits,
    bias_row,
    common_dtype,
    cost,
    counted,
    dot,
    fitted,
    generation,
    in_all_lanes,
    is_ragged,
    like,
    padded,
    visits,
)

CHUNK = 256  # tokens whose sums are in registers at the same time


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    common = common_dtype(hidden, head)
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    here = generation()
    tile = fitted(tile, here.sums, "tokens", hidden, head, partial(_bytes, d, hidden, head, here.part), here.vmem)
    tokens, columns = tile
    plan = visits(head, targets, tokens)
    part = part_of(columns // 2, here.part)  # an even number of parts, since two buffers alternate

    def of_tokens(i, j, *plan):
        return Visits(*plan).tokens(i), 0

    def of_columns(i, j, *plan):
        plan = Visits(*plan)
        return jnp.where(plan.computes(i, 0), plan.columns(j, columns), plan.last(columns)), 0

    inputs = [
        (hidden, pl.BlockSpec((tokens, d), of_tokens)),
        (head.unembedding, pl.BlockSpec((columns, d), of_columns)),
        (padded(jnp.where(targets >= 0, targets, FAR), tokens, FAR)[None], pl.BlockSpec((1, tokens), _row)),
    ]
    if head.bias is not None:
        inputs.append((bias_row(head, columns), pl.BlockSpec((1, columns), lambda *at: of_columns(*at)[::-1])))
    arrays, specs = zip(*inputs, strict=True)
    kernel = partial(
        _kernel,
        tile=tile,
        part=part,
        common=common,
        ragged=is_ragged(head, columns),
        biased=head.bias is not None,
        capped=head.softcap is not None,
    )
    found = pl.pallas_call(
        kernel,
        like(hidden, (len(Sums._fields), plan.present.shape[0] * tokens), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan),
            grid=(plan.present.shape[0], pl.cdiv(v, columns)),
            in_specs=specs,
            out_specs=pl.BlockSpec((len(Sums._fields), tokens), _row),
            scratch_shapes=[
                *[pltpu.VMEM((part, tokens), jnp.float32)] * 2,
                pltpu.VMEM((len(Sums._fields), SUBLANES, tokens), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=here.vmem),
        cost_estimate=cost(1, hidden, head, tile, "vocabulary", 1),
        name="token_stats_sums",
    )(*plan, *arrays)
    return Sums(*found[:, :n])


def _kernel(present, held, size, scale, h, w, y, *refs, tile: Tile, part: int, common, ragged, biased, capped):
    b, out, *logits, found = refs if biased else (None, *refs)
    plan = Visits(present, held, size, scale)
    beta, cap, floor = scale[0], scale[1], scale[2]
    i, j = pl.program_id(0), pl.program_id(1)
    parts = tile.vocabulary // part
    first = j * tile.vocabulary

    def make(p: int):
        z = dot(w[pl.ds(p * part, part)], h[...], (1, 1), common)
        if b is not None:
            z = z + in_all_lanes(b[:, pl.ds(p * part, part)])[:, :1]
        z = jnp.where(z <= floor, floor, cap * jnp.tanh(z / cap) if capped else z)  # NaN stays NaN
        if ragged:
            z = jnp.where(counted(z.shape, 0) < size[0] - (first + p * part), z, floor)
        logits[p % 2][...] = z

    def add(p: int):
        """Adds part p to the sums; p = −1 is the last part of the previous tile."""
        for start in range(0, tile.tokens, CHUNK):
            chunk = pl.ds(start, min(CHUNK, tile.tokens - start))
            local = y[:, chunk] - (first + p * part)
            old = Sums(*(found[k, :, chunk] for k in range(len(Sums._fields))))
            new = _absorbed(old, logits[p % 2].at[:, chunk], local, beta)
            for k, value in enumerate(new):
                found[k, :, chunk] = value

    @pl.when(j == 0)
    def start():
        found[...] = jnp.zeros_like(found)
        found[0] = jnp.full(found.shape[1:], floor)
        logits[(parts - 1) % 2][...] = jnp.full((part, tile.tokens), floor)

    @pl.when(plan.computes(i, first))
    def compute():
        for p in range(parts):
            make(p)
            add(p - 1)

        @pl.when(j == plan.last(tile.vocabulary))
        def finish():
            add(parts - 1)

    @pl.when(j == pl.num_programs(1) - 1)
    def write():
        top, target, rest, squares, moment = (found[k] for k in range(len(Sums._fields)))
        top, target = (jnp.where(z <= floor, BANNED, z * beta) for z in (top, target))
        eight = Sums(top, target, rest, squares, moment * beta)
        total = rescaled(eight, jnp.max(eight.top, axis=0, keepdims=True))
        out[...] = jnp.concatenate([total.top, *(jnp.sum(x, axis=0, keepdims=True) for x in total[1:])])


def _absorbed(old: Sums, z, local, beta) -> Sums:
    """The sums [8, n] with one more part of logits z [part, n]; `local` [1, n] is the row of z with each target."""
    groups = z.shape[0] // SUBLANES
    over_groups = partial(lax.fori_loop, 0, groups, unroll=True)

    def group(k):
        return z[pl.ds(pl.multiple_of(k * SUBLANES, SUBLANES), SUBLANES)]

    top = over_groups(lambda k, top: jnp.maximum(top, group(k)), old.top)
    shift = old.top - top
    s = jnp.exp(beta * shift)
    moment = jnp.where(s > 0, (old.moment + shift * old.rest) * s, 0)  # avoids −∞·0
    target_group = local - counted(old.top.shape, 0)

    def add(k, so_far):
        target, rest, squares, moment = so_far
        x = group(k)
        is_target = target_group == k * SUBLANES
        d = x - top
        e = jnp.where(is_target, 0, jnp.exp(beta * d))
        return jnp.where(is_target, x, target), rest + e, squares + e * e, moment + d * e

    return Sums(top, *over_groups(add, (old.target, old.rest * s, old.squares * (s * s), moment)))


def part_of(size: int, limit: int) -> int:
    """The largest multiple of 64 up to `limit` that divides `size`, which must be a multiple of 64."""
    return max(part for part in range(64, limit + 1, 64) if size % part == 0)


def _row(i, j, *_):
    return 0, i


def _bytes(d: int, hidden, head: Head, part: int, tile: Tile) -> int:
    inputs = 2 * d * (tile.tokens * hidden.dtype.itemsize + tile.vocabulary * head.unembedding.dtype.itemsize)
    return inputs + 4 * tile.tokens * (2 * part + 8 * SUBLANES)
