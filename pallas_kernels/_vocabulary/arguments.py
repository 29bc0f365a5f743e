"""Checks the arguments of token_stats, token_topk and token_kl, and converts them for the implementations."""

from numbers import Integral

import jax.numpy as jnp
from jax import core, lax

from pallas_kernels._dispatch import axes_of, require, varying_over
from pallas_kernels._vocabulary.types import ABSENT, dtypes
from pallas_kernels._vocabulary.vjp import Inputs


def check(kernel: str, hidden, unembedding, targets, bias, mask, scalars, tile, width_axis=None) -> None:
    """Raises unless the arguments fit each other; `scalars` are the temperature and the soft cap by name."""
    for name, array, axes in (("hidden", hidden, "[N, D]"), ("unembedding", unembedding, "[V, D]")):
        require(jnp.ndim(array) == 2, kernel, name, f"of shape {jnp.shape(array)}", f"of two axes, {axes}")
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        require(floating, kernel, name, f"of dtype {jnp.result_type(array)}", "floating point", TypeError)
    (N, D), (V, width) = jnp.shape(hidden), jnp.shape(unembedding)
    shards = shards_of(kernel, "width_axis", width_axis)
    of = f"[V, D] with D = {D}, as in hidden" if shards == 1 else f"[V, D/{shards}] with D = {D}, as in hidden"
    require(width * shards == D, kernel, "unembedding", f"of shape {(V, width)}", of)
    require(V > 0, kernel, "unembedding", f"of shape {(V, width)}", "of at least one row")
    _check_vector(kernel, "targets", targets, N, "N", "as in hidden", jnp.integer, "integer")
    check_bias(kernel, bias, V)
    if mask is not None:
        _check_vector(kernel, "mask", mask, N, "N", "as in hidden", jnp.bool_, "bool")
    for name, value in scalars.items():
        check_scalar(kernel, name, value)
    if tile is not None:
        whole = isinstance(tile, tuple) and len(tile) == 2 and all(is_integer(size) and size > 0 for size in tile)
        require(whole, kernel, "tile", tile, "(tokens, vocabulary), two positive integers")


def check_bias(kernel: str, bias, size: int) -> None:
    """Raises unless it is None or [V]."""
    if bias is not None:
        _check_vector(kernel, "bias", bias, size, "V", "as in unembedding", jnp.floating, "floating point")


def _check_vector(kernel, name, array, size, symbol, origin, kind, kind_name) -> None:
    shape, dtype = jnp.shape(array), jnp.result_type(array)
    require(shape == (size,), kernel, name, f"of shape {shape}", f"[{symbol}] with {symbol} = {size}, {origin}")
    fits = dtype == kind if kind is jnp.bool_ else jnp.issubdtype(dtype, kind)
    require(fits, kernel, name, f"of dtype {dtype}", kind_name, TypeError)


def is_integer(value) -> bool:
    """Of Python or NumPy; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shards_of(kernel: str, argument: str, axis_name: str | None) -> int:
    """The devices of a mesh axis of the surrounding `shard_map`; 1 of None. ValueError where there is no such axis."""
    if axis_name is None:
        return 1
    try:
        return lax.axis_size(axis_name)
    except NameError:
        remedy = "an axis of the mesh of the shard_map around it, or None outside of one"
        raise ValueError(f"{kernel}: {argument} is {axis_name!r}; it should be {remedy}") from None


def check_scalar(kernel: str, name: str, value) -> None:
    """Raises unless the temperature or soft cap is a positive number; only a soft cap may be None."""
    if value is None:
        require(name == "softcap", kernel, name, value, "a positive number")
        return
    require(jnp.ndim(value) == 0, kernel, name, f"of shape {jnp.shape(value)}", "a scalar")
    if not isinstance(value, core.Tracer):
        remedy = "positive and finite" + (" (for greedy decoding there is no π)" if name == "temperature" else "")
        require(0 < float(value) < float("inf"), kernel, name, value, remedy)


def columns_of(kernel: str, vocab_size: int | None, unembedding, axis_name: str | None) -> int:
    """The tokens of the vocabulary, over all shards and without padding; ValueError where there are no such rows."""
    rows = unembedding.shape[0] * shards_of(kernel, "axis_name", axis_name)
    if vocab_size is None:
        return rows
    fits = is_integer(vocab_size) and 0 < vocab_size <= rows
    require(fits, kernel, "vocab_size", vocab_size, f"an integer in [1, {rows}], the rows of unembedding")
    return int(vocab_size)


def inputs_of(hidden, unembedding, targets, bias, mask, scalars, vocabulary: int, axis_name: str | None) -> Inputs:
    """The arrays, spread over the axes of a `shard_map` over which any of them varies."""
    accumulator = dtypes(hidden, unembedding)[1]
    if targets.dtype.itemsize < 4:  # which may have no number as large as the vocabulary
        targets = targets.astype(jnp.int32)
    present = (targets >= 0) & (targets < vocabulary)
    present = present if mask is None else present & mask
    y = jnp.where(present, targets.astype(jnp.int32), ABSENT)
    beta = lax.stop_gradient(1 / jnp.asarray(scalars["temperature"], accumulator))
    cap = scalars["softcap"]
    cap = cap if cap is None else lax.stop_gradient(jnp.asarray(cap, accumulator))
    axes = axes_of(hidden, unembedding, bias, y, beta, cap)
    weights = varying_over(axes, hidden, unembedding, bias)
    return Inputs(*weights, *varying_over(axes - {axis_name}, y, beta, cap))
