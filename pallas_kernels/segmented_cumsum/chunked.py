"""Segmented scans by a loop over tokens that any device can run, all rows at once.

A sequence's first token takes nothing from before it: a real reset, not a difference of two running sums, so that
neither a large neighbour nor its NaN is felt.  The loop's carry is compensated (see `_operation`).

On a CPU a step costs little, and one loop over T is the fastest (benchmarks/segmented_cumsum.py); elsewhere a step
is a program of its own, and √T chunks of √T tokens, scanned side by side and then their totals, take 2√T steps.
"""

import math
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.segmented_cumsum._operation import Operation

Ids = Int[Array, "*B T"] | Bool[Array, "*B T"]  # 0 is a hole; a mask is kept as one, since its bytes move faster


def segmented_scan(
    operation: Operation, x: Float[Array, "*B T"], segment_ids: Ids, reverse: bool, exclusive: bool
) -> Float[Array, "*B T"]:
    """The running `operation` within each sequence; its `empty` at holes."""
    length = x.shape[-1]
    scan = partial(scan_in_chunks, operation, reverse, exclusive)
    several = partial(scan, min(length, max(math.isqrt(length), 64)))
    return lax.platform_dependent(x, segment_ids, cpu=partial(scan, length), default=several)


def scan_in_chunks(
    operation: Operation, reverse: bool, exclusive: bool, size: int, x: Float[Array, "*B T"], segment_ids: Ids
) -> Float[Array, "*B T"]:
    """Chunks of `size` tokens side by side, then their totals one after the other."""
    length = x.shape[-1]
    x, ids = (_chunks(array, size) for array in (x, segment_ids))  # [size, *B, chunks]
    total = jnp.full_like(x[0], operation.empty)
    start = total, jnp.zeros_like(total), jnp.zeros_like(ids[0])  # alike, so that they vary over a shard_map's axes too
    step = partial(_step, operation, exclusive)
    (total, _, last), y = lax.scan(step, start, (x, ids), reverse=reverse)
    if length == size:
        return jnp.moveaxis(y[..., 0], 0, -1)

    def collect(carry, chunk):
        return step(carry, chunk)[0], carry

    by_chunk = tuple(jnp.moveaxis(array, -1, 0) for array in (total, last))  # [chunks, *B]
    begin = tuple(array[..., 0] for array in start)
    before, _, last = (jnp.moveaxis(c, 0, -1) for c in lax.scan(collect, begin, by_chunk, reverse=reverse)[1])
    y = jnp.where((ids == last[None]) & ids.astype(jnp.bool_), operation.combine(y, before[None]), y)
    return jnp.moveaxis(y, 0, -1).reshape(*y.shape[1:-1], -1)[..., :length]


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
