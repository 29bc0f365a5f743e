"""TPU kernel for ∂hidden: for each tile of tokens, one pass over tiles of columns. See `backward_tile`.

VMEM holds double-buffered blocks of h, W and ∂h, the `scratch` of `backward_tile`, and the targets and up to six
coefficients as columns that are broadcast over all lanes; `_bytes` is the total size.
"""

from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels._vocabulary.statistics import Slope
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile
from pallas_kernels.token_stats.tpu.backward_tile import (
    CLEARED,
    ROWS,
    accumulate,
    coefficient_rows,
    from_rows,
    scratch,
    scratch_bytes,
    slope_of_logits,
    zero_unless,
)
from pallas_kernels.token_stats.tpu.generations import (
    LANES,
    Visits,
    bias_row,
    common_dtype,
    cost,
    counted,
    fitted,
    generation,
    in_all_lanes,
    is_ragged,
    like,
    padded,
    visits,
)


def hidden_gradient(hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype) -> Array:
    common = common_dtype(hidden, head)
    (n, d), v = hidden.shape, head.unembedding.shape[0]
    here = generation()
    tile = fitted(tile, here.hidden, "tokens", hidden, head, partial(_bytes, d, hidden, head, dtype), here.vmem)
    tokens, columns = tile
    plan = visits(head, targets, tokens)
    coefficients = coefficient_rows(slope, targets, tokens)

    def of_tokens(i, j, *plan):
        return Visits(*plan).tokens(i), 0

    def of_columns(i, j, *plan):
        plan = Visits(*plan)
        return jnp.where(plan.computes(i, 0), plan.columns(j, columns), plan.last(columns)), 0

    def row(i, j, *_):
        return 0, i

    inputs = [
        (hidden, pl.BlockSpec((tokens, d), of_tokens)),
        (head.unembedding, pl.BlockSpec((columns, d), of_columns)),
        (padded(targets, tokens, ABSENT)[None], pl.BlockSpec((1, tokens), row)),
        (coefficients, pl.BlockSpec((coefficients.shape[0], tokens), row)),
    ]
    if head.bias is not None:
        inputs.append((bias_row(head, columns), pl.BlockSpec((1, columns), lambda *at: of_columns(*at)[::-1])))
    arrays, specs = zip(*inputs, strict=True)
    kernel = partial(
        _kernel,
        tile=tile,
        common=common,
        known=(slope.log_pi is not None, slope.pi is not None),
        ragged=is_ragged(head, columns),
        biased=head.bias is not None,
        capped=head.softcap is not None,
    )
    return pl.pallas_call(
        kernel,
        like(hidden, (n, d), dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan),
            grid=(plan.present.shape[0], pl.cdiv(v, columns)),
            in_specs=specs,
            out_specs=pl.BlockSpec((tokens, d), lambda i, j, *_: (i, 0)),
            scratch_shapes=[
                *scratch(tokens, columns, d, common),
                pltpu.VMEM((tokens, LANES), jnp.int32),
                pltpu.VMEM((coefficients.shape[0], tokens, LANES), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=here.vmem),
        cost_estimate=cost(2, hidden, head, tile, "vocabulary", 1),
        name="token_stats_hidden_gradient",
    )(*plan, *arrays)


def _kernel(
    present, held, size, scale, h, w, y, c, *refs, tile: Tile, common, known, ragged: bool, biased: bool, capped: bool
):
    b, dh, *logits, dz, total, y_column, c_columns = refs if biased else (None, *refs)
    plan = Visits(present, held, size, scale)
    i, j = pl.program_id(0), pl.program_id(1)
    first = j * tile.vocabulary
    width = tile.vocabulary // LANES

    def slope(row, z):
        rows = pl.ds(row, ROWS)
        if b is not None:
            z = z + b[...]
        columns = [jnp.concatenate([c_columns[k, rows]] * width, axis=1) for k in range(c.shape[0])]
        local = jnp.concatenate([y_column[rows] - first] * width, axis=1)
        return slope_of_logits(z, from_rows(known, columns), counted(z.shape, 1) == local, scale, capped)

    @pl.when(j == 0)
    def start():
        total[...] = jnp.zeros_like(total)
        y_column[...] = in_all_lanes(y[...])
        for k in range(c.shape[0]):
            c_columns[k] = in_all_lanes(c[pl.ds(k, 1)])

    @pl.when(plan.computes(i, first))
    def compute():
        if ragged:

            @pl.when(first + tile.vocabulary > size[0])
            def leave_out():
                zero_unless(lambda row: counted((CLEARED, 1), 0) + row < size[0] - first, w)

        accumulate(h, w, slope, logits, dz, total, common)

    @pl.when(j == pl.num_programs(1) - 1)
    def write():
        keep = y_column[...][:, :1] != ABSENT
        dh[...] = jnp.where(keep, total[...], 0).astype(dh.dtype)


def _bytes(d: int, hidden, head: Head, dtype, tile: Tile) -> int:
    h, w = hidden.dtype.itemsize, head.unembedding.dtype.itemsize
    blocks = 2 * d * (tile.tokens * (h + jnp.dtype(dtype).itemsize) + tile.vocabulary * w)
    return blocks + scratch_bytes(*tile, d, max(h, w)) + 7 * tile.tokens * LANES * 4
