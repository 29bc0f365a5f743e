"""Segmented scans in two levels: every chunk of a row at once, then the chunks' totals one after the other.

With √T chunks of √T tokens a row takes 2√T steps instead of T, each on all rows and chunks together, and a sum is of
√T + √T terms, which also rounds less.  A sequence's first token takes nothing from before it: a real reset, not a
difference of two running sums, so that neither a large neighbour nor its NaN is felt.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

Ids = Int[Array, "*B T"] | Bool[Array, "*B T"]  # 0 is a hole; a mask is kept as one, since its bytes move faster


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def segmented_cumsum(x: Float[Array, "*B T"], segment_ids: Ids, reverse: bool, exclusive: bool) -> Float[Array, "*B T"]:
    """y = M x, with M[t, s] = 1 where s ≤ t are of one sequence; ∂L/∂x = Mᵀ ∂L/∂y is the scan the other way."""
    return segmented_scan(jnp.add, 0.0, x, segment_ids, reverse=reverse, exclusive=exclusive)


def _forward(x, segment_ids, reverse, exclusive):
    return segmented_cumsum(x, segment_ids, reverse, exclusive), segment_ids


def _backward(reverse, exclusive, segment_ids, cotangent):
    return segmented_cumsum(cotangent, segment_ids, not reverse, exclusive), None


segmented_cumsum.defvjp(_forward, _backward)


def segmented_scan(
    combine: Callable[[Array, Array], Array],
    empty: float,
    x: Float[Array, "*B T"],
    segment_ids: Ids,
    *,
    reverse: bool,
    exclusive: bool,
) -> Float[Array, "*B T"]:
    """Running `combine` (associative, commutative, with identity `empty`) within each sequence; `empty` at holes."""
    length = x.shape[-1]
    if x.size == 0:
        return x
    size = min(length, max(math.isqrt(length), 64))
    x, ids = (_chunks(array, size) for array in (x, segment_ids))  # [√T, *B, chunks]
    start = jnp.full_like(x[0], empty), jnp.zeros_like(ids[0])  # alike, so that they vary over a shard_map's axes too
    step = partial(_step, combine, empty, exclusive)
    totals, y = lax.scan(step, start, (x, ids), reverse=reverse)

    if length == size:
        return jnp.moveaxis(y[..., 0], 0, -1)

    def collect(carry, total):
        return step(carry, total)[0], carry

    by_chunk = tuple(jnp.moveaxis(total, -1, 0) for total in totals)  # [chunks, *B]
    begin = tuple(part[..., 0] for part in start)
    before, last = (jnp.moveaxis(c, 0, -1) for c in lax.scan(collect, begin, by_chunk, reverse=reverse)[1])
    y = jnp.where((ids == last[None]) & ids.astype(jnp.bool_), combine(y, before[None]), y)
    return jnp.moveaxis(y, 0, -1).reshape(*y.shape[1:-1], -1)[..., :length]


def _step(combine, empty, exclusive, carry, token):
    """One token; the carry is the latest sequence's total and its id, which a hole leaves alone."""
    (total, last), (x, i) = carry, token
    hole = ~i.astype(jnp.bool_)
    before = jnp.where(i == last, total, empty)
    after = combine(before, x)
    y = jnp.where(hole, empty, before if exclusive else after)
    return (jnp.where(hole, total, after), jnp.where(hole, last, i)), y


def _chunks(x, size: int):
    """[*B, T] as [size, *B, chunks], the last chunk filled up with zeros (holes)."""
    filled = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)])
    return jnp.moveaxis(filled.reshape(*x.shape[:-1], -1, size), -1, 0)
