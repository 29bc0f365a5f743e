"""Segmented scans by a loop over tokens that any device can run, all rows at once.

A sequence's first token takes nothing from before it: a real reset, not a difference of two running sums, so that
neither a large neighbor nor its NaN is felt.  The loop's carry is compensated (see `_monoids`).

On a CPU a step costs little, and one loop over T is the fastest (benchmarks/segmented_cumsum.py); elsewhere a step
is a program of its own, and √T chunks of √T tokens, scanned side by side and then their totals, take 2√T steps.
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._monoids import Operation

Ids = Int[Array, "*B T"] | Bool[Array, "*B T"]  # 0 is a hole; a mask is kept as one, since its bytes move faster


def segmented_scan(
    operation: Operation, x: Float[Array, "*B T"], segment_ids: Ids, reverse: bool, exclusive: bool
) -> Float[Array, "*B T"]:
    """The running `operation` within each sequence; its `empty` at holes."""
    loop, chunks = (partial(scan, operation, reverse, exclusive) for scan in (in_one_loop, in_chunks))
    return lax.platform_dependent(x, segment_ids, cpu=loop, default=chunks)


def in_one_loop(operation: Operation, reverse: bool, exclusive: bool, x: Float[Array, "*B T"], segment_ids: Ids):
    """A token after the other."""
    by_token = (jnp.moveaxis(array, -1, 0) for array in (x, segment_ids))
    return jnp.moveaxis(_loop(partial(_step, operation, exclusive), operation.empty, reverse, *by_token)[1], 0, -1)


def in_chunks(operation: Operation, reverse: bool, exclusive: bool, x: Float[Array, "*B T"], segment_ids: Ids):
    """Chunks of √T tokens (64 at least) side by side, then their totals one after the other."""
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
    """Over the first axis; the carry starts alike, so that it varies over a shard_map's axes as its inputs do."""
    total = jnp.full_like(x[0], empty)
    start = total, jnp.zeros_like(total), jnp.zeros_like(ids[0])
    return lax.scan(step, start, (x, ids), reverse=reverse)


def _step(operation, exclusive, carry, token):
    """One token; the carry is the latest sequence's (total, error) and its id, which a hole leaves alone."""
    (total, error, last), (x, i) = carry, token
    hole, same = ~i.astype(jnp.bool_), i == last
    before = jnp.where(same, total, operation.empty), jnp.where(same, error, 0)
    after = operation.absorb(*before, x)
    y = jnp.where(hole, operation.empty, before[0] if exclusive else after[0])
    return tuple(jnp.where(hole, old, new) for old, new in zip(carry, (*after, i), strict=True)), y


def _chunks(x, size: int):
    """[*B, T] as [size, *B, chunks], the last chunk filled up with zeros (holes)."""
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])
    return jnp.moveaxis(filled.reshape(*x.shape[:-1], -1, size), -1, 0)
