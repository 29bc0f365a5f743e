"""Segmented scans by a loop over tokens, all rows at once, for any device.

The carry is reset at the first token of each sequence, so that large values or NaN in another sequence have no effect.
On a CPU one loop over T is the fastest (`python benchmarks/segmented_cumsum.py`). Other devices, where this has never
run, launch a program per step, so √T chunks of √T tokens are scanned in parallel and then their totals: 2√T steps.
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._monoids import Operation

Ids = Int[Array, "*B T"] | Bool[Array, "*B T"]  # 0 or false is a hole; a mask stays bool to move fewer bytes


def segmented_scan(
    operation: Operation, x: Float[Array, "*B T"], segment_ids: Ids, reverse: bool, exclusive: bool
) -> Float[Array, "*B T"]:
    """The running `operation` within each sequence, [*B, T]; `operation.empty` at holes."""
    loop, chunks = (partial(scan, operation, reverse, exclusive) for scan in (in_one_loop, in_chunks))
    return lax.platform_dependent(x, segment_ids, cpu=loop, default=chunks)


def in_one_loop(operation: Operation, reverse: bool, exclusive: bool, x: Float[Array, "*B T"], segment_ids: Ids):
    by_token = (jnp.moveaxis(array, -1, 0) for array in (x, segment_ids))
    return jnp.moveaxis(_loop(partial(_step, operation, exclusive), operation.empty, reverse, *by_token)[1], 0, -1)


def in_chunks(operation: Operation, reverse: bool, exclusive: bool, x: Float[Array, "*B T"], segment_ids: Ids):
    """A loop over positions, for all chunks of √T tokens (at least 64) in parallel, then a loop over chunks' totals."""
    length = x.shape[-1]
    size = max(math.isqrt(length), 64)
    if length <= size:
        return in_one_loop(operation, reverse, exclusive, x, segment_ids)
    step = partial(_step, operation, exclusive)
    x, ids = (_chunks(array, size) for array in (x, segment_ids))  # [size, *B, chunks]
    (total, _, last), y = _loop(step, operation.empty, reverse, x, ids)

    def collect(carry, chunk):
        return step(carry, chunk)[0], carry

    by_chunk = (jnp.moveaxis(array, -1, 0) for array in (total, last))  # [chunks, *B]
    before, _, last = (
        jnp.moveaxis(array, 0, -1)[None] for array in _loop(collect, operation.empty, reverse, *by_chunk)[1]
    )
    y = jnp.where((ids == last) & ids.astype(jnp.bool_), operation.combine(y, before), y)
    return jnp.moveaxis(y, 0, -1).reshape(*y.shape[1:-1], -1)[..., :length]


def _loop(step, empty, reverse, x, ids):
    """Scans over the first axis; the initial carry is made from x, so that it varies over the same `shard_map` axes."""
    total = jnp.full_like(x[0], empty)
    start = total, jnp.zeros_like(total), jnp.zeros_like(ids[0])
    return lax.scan(step, start, (x, ids), reverse=reverse)


def _step(operation, exclusive, carry, token):
    """One token; the carry is (total, error, id) of the latest sequence, and holes leave the carry unchanged."""
    (total, error, last), (x, i) = carry, token
    hole, same = ~i.astype(jnp.bool_), i == last
    before = jnp.where(same, total, operation.empty), jnp.where(same, error, 0)
    after = operation.absorb(*before, x)
    y = jnp.where(hole, operation.empty, before[0] if exclusive else after[0])
    return tuple(jnp.where(hole, old, new) for old, new in zip(carry, (*after, i), strict=True)), y


def _chunks(x, size: int):
    """[*B, T] as [size, *B, chunks], with zeros (holes) at the end of the last chunk."""
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])
    return jnp.moveaxis(filled.reshape(*x.shape[:-1], -1, size), -1, 0)
