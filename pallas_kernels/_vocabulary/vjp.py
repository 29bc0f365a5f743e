"""token_stats as a custom_vjp of an implementation's two passes; the vocabulary and the width may be sharded."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Float, Int

from pallas_kernels._vocabulary.statistics import Sums, finish, joined, joined_over, no_columns, slope_of
from pallas_kernels._vocabulary.types import ABSENT, ELSEWHERE, Head, Tile, TokenStats

SLAB = 2**24  # elements of the unembedding per all_gather if its width is sharded


class Passes(NamedTuple):
    """Forward and backward pass of an implementation over the columns that a device holds."""

    sums: Callable[..., Sums]  # (hidden, head, targets, tile)
    gradients: Callable[..., tuple[Array, Array, Array | None]]  # (hidden, head, targets, slope, tile, ∂hidden's dtype)


class Plan(NamedTuple):
    """Static arguments of the custom_vjp; `vocabulary` is the number of columns of all shards, without padding."""

    passes: Passes
    tile: Tile | None
    vocabulary: int
    axis_name: str | None
    width_axis: str | None


class Inputs(NamedTuple):
    """Array arguments of the custom_vjp; `targets` are columns of the whole vocabulary, or ABSENT."""

    hidden: Float[Array, "N D"]
    unembedding: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    targets: Int[Array, " N"]
    beta: Float[Array, ""]
    softcap: Float[Array, ""] | None


@cache
def rule(plan: Plan) -> Callable[..., TokenStats]:
    """The function `(*Inputs) -> TokenStats`, differentiable in hidden, unembedding and bias."""
    function = jax.custom_vjp(lambda *inputs: _forward(plan, Inputs(*inputs))[0])
    function.defvjp(partial(_save, plan), partial(_backward, plan), symbolic_zeros=True)
    return function


def _save(plan: Plan, *primals):
    values: Any = (None if primal is None else primal.value for primal in primals)
    inputs = Inputs(*values)
    stats, normalizer = _forward(plan, inputs)
    return stats, (inputs, stats, normalizer)


def _forward(plan: Plan, inputs: Inputs):
    """(TokenStats, normalizer (m, log S)), [N] each, equal on all shards of the vocabulary."""

    def add(found: Sums, first, slab: Head, y) -> Sums:
        more = plan.passes.sums(inputs.hidden, slab, y, plan.tile)
        return more if plan.width_axis is None else joined(found, more)

    nothing = no_columns(inputs.hidden[:, 0], inputs.beta.dtype)  # from hidden, so it varies over the sums' axes
    found = _over_slabs(plan, inputs, add, nothing)
    return finish(found if plan.axis_name is None else joined_over(found, plan.axis_name), inputs.targets)


def _backward(plan: Plan, saved, cotangents):
    inputs, stats, normalizer = saved
    hidden, weights = inputs.hidden, (inputs.unembedding, inputs.bias)
    if plan.axis_name is not None and not jax.typeof(inputs.unembedding).manual_axis_type.varying:
        # With shard_map(check_vma=False) each shard has only a part of the cotangent of a replicated output. The
        # cotangent of an unused output is a SymbolicZero on all shards.
        cotangents = [c if isinstance(c, SymbolicZero) else lax.psum(c, plan.axis_name) for c in cotangents]
    slope = slope_of(cotangents, stats, normalizer, inputs.targets, inputs.beta)

    def add(found, first, slab: Head, y):
        sum_dtype = hidden.dtype if plan.width_axis is None else inputs.beta.dtype
        dh, dw, db = plan.passes.gradients(hidden, slab, y, slope, plan.tile, sum_dtype)
        if plan.width_axis is None:
            return dh, (dw, db)
        dw = lax.psum_scatter(dw, plan.width_axis, scatter_dimension=1, tiled=True)
        put = partial(lax.dynamic_update_slice_in_dim, start_index=first, axis=0)
        return found[0] + dh, jax.tree.map(put, found[1], (dw, db))

    nothing = jnp.zeros_like(hidden, inputs.beta.dtype), jax.tree.map(jnp.zeros_like, weights)
    dh, (dw, db) = _over_slabs(plan, inputs, add, nothing)
    return dh.astype(hidden.dtype), dw, db, None, None, None


def _over_slabs(plan: Plan, inputs: Inputs, add: Callable, carry):
    """Scans carry = add(carry, first, slab, targets) over slabs of this device's columns, gathered to full width.

    Without `width_axis` there is one slab. The targets given to `add` are columns of the slab, ELSEWHERE or ABSENT.
    """
    rows, width = inputs.unembedding.shape
    begin, size = shard(plan.vocabulary, plan.axis_name, rows)
    if plan.width_axis is None:
        head = Head(inputs.unembedding, inputs.bias, inputs.beta, inputs.softcap, size)
        return add(carry, 0, head, localized(inputs.targets, begin, rows))

    def visit(carry, first, count: int):
        w, b = (
            x if x is None else lax.dynamic_slice_in_dim(x, first, count) for x in (inputs.unembedding, inputs.bias)
        )
        w = lax.all_gather(w, plan.width_axis, axis=1, tiled=True)
        columns = count if isinstance(size, int) and size == rows else jnp.clip(size - first, 0, count)
        slab = Head(w, b, inputs.beta, inputs.softcap, columns)
        return add(carry, first, slab, localized(inputs.targets, begin + first, count))

    count = min(rows, max(8, SLAB // (width * lax.axis_size(plan.width_axis))))
    starts = count * jnp.arange(rows // count, dtype=jnp.int32)
    carry, _ = lax.scan(lambda carry, first: (visit(carry, first, count), None), carry, starts)
    return visit(carry, rows - rows % count, rows % count) if rows % count else carry


def shard(vocabulary: int, axis_name: str | None, rows: int) -> tuple[Any, Any]:
    """(index of this device's first column, number of its `rows` that are not padding)."""
    if axis_name is None:
        return 0, vocabulary
    begin = lax.axis_index(axis_name) * rows
    whole = vocabulary == lax.axis_size(axis_name) * rows
    return begin, rows if whole else jnp.clip(vocabulary - begin, 0, rows)


def localized(targets, begin, columns: int):
    """Targets relative to column `begin`; ELSEWHERE if outside begin:begin + columns. ABSENT stays ABSENT."""
    local = targets - begin
    here = (local >= 0) & (local < columns)
    return jnp.where(targets == ABSENT, ABSENT, jnp.where(here, local, ELSEWHERE))
