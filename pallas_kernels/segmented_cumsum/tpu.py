"""Segmented scans on a TPU: blocks of rows × tokens in VMEM, and a carry there from one block of a row to the next.

With ⊕ a sum or a minimum, id 0 a hole, and the ids i of one sequence in a run, holes apart,

    y_t = ⊕ x_s over s ≤ t (s < t if exclusive) with i_s = i_t ≠ 0,      the empty of ⊕ at holes.

            tokens →
       ┌──────┬──────┬──────┐       Grid: (blocks of 8 rows, blocks of 1024 tokens), the latter in the scan's order,
    8  │  0  ⟶│  1  ⟶│  2   │       backwards for a reverse one; ⟶ hands on (id, total, error), [8, 1] each.
       └──────┴──────┴──────┘

Within a block the scan is a tree (Hillis and Steele): in round k every token takes in the one 2ᵏ before it, which by
then stands for the 2ᵏ tokens up to it, unless that is of another sequence.  A hole (id 0) stands for what is before it,
so that it neither adds nor resets.  A row's blocks come one after the other and hand on the last sequence's id and its
(total, error), compensated: log₂ 1024 roundings within a block and two for all blocks together.

VMEM, in bytes: x, ids and y 3·2·8·1024·4 (each twice, one block on its way while the other is computed), the carry
3·8·128·4 (a column takes all lanes), and the tree's x, ids and what is before them, 4·8·1024·4: a third of a MiB.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._monoids import Operation

ROWS, TOKENS = 8, 1024  # of a block


def segmented_scan(
    operation: Operation,
    x: Float[Array, "*B T"],
    segment_ids: Int[Array, "*B T"] | Bool[Array, "*B T"],
    reverse: bool,
    exclusive: bool,
) -> Float[Array, "*B T"]:
    """The running `operation` within each sequence; its `empty` at holes.  x is float32, of at least one element."""
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
    inside = block * TOKENS + _place() < length  # past the end of a row may lie anything
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
    """Of the tokens of a block up to each: the id of the latest that is no hole (0: none), and its sequence's x."""
    distance = 1
    while distance < TOKENS:
        id_before, before = _earlier(reverse, distance, ids, x)
        joined = jnp.where(id_before == ids, operation.combine(before, x), x)
        ids, x = jnp.where(ids == 0, id_before, ids), jnp.where(ids == 0, before, joined)
        distance *= 2
    return ids, x


def _earlier(reverse, distance, ids, x):
    """ids and x of the token so far before each, on the scan's way; id 0 where that is outside of the block."""
    shift = jnp.int32(TOKENS - distance if reverse else distance)
    exists = _place() < TOKENS - distance if reverse else _place() >= distance
    return jnp.where(exists, pltpu.roll(ids, shift, axis=1), 0), pltpu.roll(x, shift, axis=1)


def _place():
    return jax.lax.broadcasted_iota(jnp.int32, (ROWS, TOKENS), 1)
