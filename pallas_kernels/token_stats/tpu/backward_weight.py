"""TPU kernel for ∂unembedding and ∂bias: for each tile of columns, one pass over tiles of tokens. See `backward_tile`.

VMEM holds double-buffered blocks of W, h and ∂W, the `scratch` of `backward_tile`, the targets and the bias as columns
broadcast over all lanes, and a partial sum of ∂bias per lane; `_bytes` is their total size.
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

LARGE = 1e15  # a hidden state of this size times a weight of 1e23 is still finite in float32


def weight_gradient(hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None):
    """(∂unembedding [V, D], ∂bias [V] or None), each in its input's dtype."""
    common = common_dtype(hidden, head)
    v, d = head.unembedding.shape
    here = generation()
    tile = fitted(tile, here.weight, "vocabulary", hidden, head, partial(_bytes, d, hidden, head), here.vmem)
    tokens, columns = tile
    plan = visits(head, targets, tokens)
    spoilt = _spoilt(hidden, targets, tokens)
    coefficients = coefficient_rows(slope, targets, tokens)
    biased, end = head.bias is not None, plan.present.shape[0] - 1

    def of_tokens(j, i, *plan):
        plan = Visits(*plan[:-1])
        return jnp.where(j * columns < plan.size[0], plan.tokens(i), plan.tokens(end)), 0

    def of_columns(j, i, *plan):
        return Visits(*plan[:-1]).columns(j, columns), 0

    def row(j, i, *_):
        return 0, i

    inputs = [
        (hidden, pl.BlockSpec((tokens, d), of_tokens)),
        (head.unembedding, pl.BlockSpec((columns, d), of_columns)),
        (padded(targets, tokens, ABSENT)[None], pl.BlockSpec((1, tokens), row)),
        (coefficients, pl.BlockSpec((coefficients.shape[0], tokens), row)),
    ]
    of_dw = pl.BlockSpec((columns, d), lambda j, *_: (j, 0))
    outputs = [(like(head.unembedding, (v, d), head.unembedding.dtype), of_dw)]
    if head.bias is not None:
        inputs.append((bias_row(head, columns), pl.BlockSpec((1, columns), lambda *at: of_columns(*at)[::-1])))
        outputs.append((like(head.bias, (1, v), head.bias.dtype), pl.BlockSpec((1, columns), lambda j, *_: (0, j))))
    arrays, specs = zip(*inputs, strict=True)
    types, out_specs = zip(*outputs, strict=True)
    kernel = partial(
        _kernel,
        tile=tile,
        common=common,
        known=(slope.log_pi is not None, slope.pi is not None),
        ragged=is_ragged(head, columns),
        biased=biased,
        capped=head.softcap is not None,
    )
    dw, *db = pl.pallas_call(
        kernel,
        types,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(plan) + 1,
            grid=(pl.cdiv(v, columns), plan.present.shape[0]),
            in_specs=specs,
            out_specs=out_specs,
            scratch_shapes=[
                *scratch(columns, tokens, d, common),
                pltpu.VMEM((tokens, LANES), jnp.int32),
                *[pltpu.VMEM((columns, LANES), jnp.float32)] * (2 * biased),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=here.vmem),
        cost_estimate=cost(2, hidden, head, tile, "tokens", 1),
        name="token_stats_weight_gradient",
    )(*plan, spoilt, *arrays)
    return dw, db[0][0] if biased else None


def _spoilt(hidden, targets, tokens: int):
    """1 for each tile of tokens with a row that has no target and whose hidden state may give NaN or infinite logits.

    The kernel sets such rows to 0, since a coefficient of 0 times NaN is not 0.
    """
    ordinary = jnp.sum(jnp.abs(hidden), axis=1, dtype=jnp.float32) < LARGE  # false for NaN
    rows = padded((targets == ABSENT) & ~ordinary, tokens, True).reshape(-1, tokens)
    return jnp.any(rows, axis=1).astype(jnp.int32)


def _kernel(*refs, tile: Tile, common, known, ragged: bool, biased: bool, capped: bool):
    present, held, size, scale, spoilt, h, w, y, c, *refs = refs
    if biased:
        b, dw, db, *logits, dz, total, y_column, b_column, b_total = refs
    else:
        dw, *logits, dz, total, y_column = refs
    j, i = pl.program_id(0), pl.program_id(1)
    first = j * tile.vocabulary

    def slope(row, z):
        if biased:
            z = z + jnp.concatenate([b_column[pl.ds(row, ROWS)]] * (tile.tokens // LANES), axis=1)
        coefficients = from_rows(known, [c[pl.ds(k, 1)] for k in range(c.shape[0])])
        slopes = slope_of_logits(z, coefficients, counted(z.shape, 0) == y[...] - (first + row), scale, capped)
        if biased:
            lanes = [slopes[:, start : start + LANES] for start in range(0, tile.tokens, LANES)]
            b_total[pl.ds(row, ROWS)] += sum(lanes[1:], lanes[0])
        return slopes

    @pl.when(i == 0)
    def start():
        total[...] = jnp.zeros_like(total)
        if biased:
            b_column[...], b_total[...] = in_all_lanes(b[...]), jnp.zeros_like(b_total)

    @pl.when(Visits(present, held, size, scale).computes(i, first))
    def compute():
        @pl.when(spoilt[i] > 0)
        def leave_out():
            y_column[...] = in_all_lanes(y[...])
            zero_unless(lambda row: y_column[pl.ds(row, CLEARED)][:, :1] != ABSENT, h)

        accumulate(w, h, slope, logits, dz, total, common)

    @pl.when(i == pl.num_programs(1) - 1)
    def write():
        is_column = counted((tile.vocabulary, 1), 0) < size[0] - first
        dw[...] = (jnp.where(is_column, total[...], 0) if ragged else total[...]).astype(dw.dtype)
        if biased:
            sums = jnp.sum(jnp.transpose(b_total[...]), axis=0, keepdims=True)
            db[...] = jnp.where(counted(sums.shape, 1) < size[0] - first, sums, 0).astype(db.dtype)


def _bytes(d: int, hidden, head: Head, tile: Tile) -> int:
    h, w = hidden.dtype.itemsize, head.unembedding.dtype.itemsize
    blocks = 2 * d * (tile.tokens * h + 2 * tile.vocabulary * w)
    return (
        blocks
        + scratch_bytes(tile.vocabulary, tile.tokens, d, max(h, w))
        + (tile.tokens + 2 * tile.vocabulary) * LANES * 4
    )
