"""TPU kernel for segmented scans: blocks of rows × tokens, with a carry in VMEM between the blocks of a row.

            tokens →
       ┌──────┬──────┬──────┐       Grid: (blocks of 8 rows, blocks of 1024 tokens). A row's blocks run in scan order,
    8  │  0  ⟶│  1  ⟶│  2   │       last to first if reverse. ⟶ is the carry (id, total and error of the latest
       └──────┴──────┴──────┘       sequence), [8, 1] each.

Within a block the scan is a Hillis-Steele tree. In round k every token combines its value with the value of the token
2ᵏ before it if both have the same id, and then holds the result over 2ᵏ⁺¹ positions. A hole takes the id and value of
the token before it, so it neither adds nor resets. Sums are compensated across blocks: log₂ 1024 roundings within a
block, and about two for all blocks of a row together. The kernel has never run on a TPU, only in Pallas' interpreters.

VMEM, by arithmetic: 1/3 MiB for x, ids and y (double-buffered), the carry, the tree's arrays and their shifted copies.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._monoids import Operation

ROWS, TOKENS = 8, 1024  # shape of a block


def segmented_scan(
    operation: Operation,
    x: Float[Array, "*B T"],
    segment_ids: Int[Array, "*B T"] | Bool[Array, "*B T"],
    reverse: bool,
    exclusive: bool,
) -> Float[Array, "*B T"]:
    """The running `operation` within each sequence, `operation.empty` at holes; x is float32 and not empty."""
    length, rows = x.shape[-1], math.prod(x.shape[:-1])
    x_rows, ids = x.reshape(rows, length), segment_ids.astype(jnp.int32).reshape(rows, length)
    blocks = pl.cdiv(length, TOKENS)
    spec = pl.BlockSpec((ROWS, TOKENS), lambda row, step: (row, blocks - 1 - step if reverse else step))
    carry = pltpu.VMEM((ROWS, 1), jnp.float32)
    y = pl.pallas_call(
        partial(_kernel, operation, reverse, exclusive, length),
        out_shape=jax.ShapeDtypeStruct(x_rows.shape, x.dtype, manual_axis_type=jax.typeof(x_rows).manual_axis_type),
        grid=(pl.cdiv(rows, ROWS), blocks),
        in_specs=[spec, spec],
        out_specs=spec,
        scratch_shapes=[carry, carry, pltpu.VMEM((ROWS, 1), jnp.int32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=6 * int(math.log2(TOKENS)) * x.size, bytes_accessed=12 * x.size, transcendentals=0
        ),
        name=f"{operation.name}_tpu",
    )(x_rows, ids)
    return y.reshape(x.shape)


def _kernel(operation, reverse, exclusive, length, x_ref, ids_ref, y_ref, total_ref, error_ref, last_ref):
    step = pl.program_id(1)

    @pl.when(step == 0)
    def _():
        total_ref[...] = jnp.full_like(total_ref, operation.empty)
        error_ref[...] = jnp.zeros_like(error_ref)
        last_ref[...] = jnp.zeros_like(last_ref)

    block = pl.num_programs(1) - 1 - step if reverse else step
    inside = block * TOKENS + _place() < length  # memory past the end of a row is undefined
    ids = jnp.where(inside, ids_ref[...], 0)
    x = jnp.where(ids != 0, x_ref[...], operation.empty)

    latest, up_to = _tree(operation, reverse, ids, x)
    within = up_to
    if exclusive:
        id_before, before = _earlier(reverse, 1, latest, up_to)
        within = jnp.where(id_before == ids, before, operation.empty)
    total, error, last = total_ref[...], error_ref[...], last_ref[...]
    y = jnp.where(ids == last, operation.absorb(total, error, within)[0], within)
    y_ref[...] = jnp.where(ids != 0, y, operation.empty)

    end = 0 if reverse else TOKENS - 1
    i, of_block = latest[:, end : end + 1], up_to[:, end : end + 1]
    same = i == last
    total_of, error_of = operation.absorb(jnp.where(same, total, operation.empty), jnp.where(same, error, 0), of_block)
    total_ref[...] = jnp.where(i != 0, total_of, total)
    error_ref[...] = jnp.where(i != 0, error_of, error)
    last_ref[...] = jnp.where(i != 0, i, last)


def _tree(operation, reverse, ids, x):
    """For each token of a block, the id and result of the latest token that is not a hole; id 0 if all are holes."""
    distance = 1
    while distance < TOKENS:
        id_before, before = _earlier(reverse, distance, ids, x)
        joined = jnp.where(id_before == ids, operation.combine(before, x), x)
        ids, x = jnp.where(ids == 0, id_before, ids), jnp.where(ids == 0, before, joined)
        distance *= 2
    return ids, x


def _earlier(reverse, distance, ids, x):
    """ids and x at `distance` tokens before each token in scan order; id 0 if that is outside of the block."""
    shift = jnp.int32(TOKENS - distance if reverse else distance)
    exists = _place() < TOKENS - distance if reverse else _place() >= distance
    return jnp.where(exists, pltpu.roll(ids, shift, axis=1), 0), pltpu.roll(x, shift, axis=1)


def _place():
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, TOKENS), 1)
