"""Argument checks and conversions of token_stats, token_topk and token_kl."""

from numbers import Integral

import jax.numpy as jnp
from jax import core, lax

from pallas_kernels._dispatch import axes_of, require, varying_over
from pallas_kernels._vocabulary.types import ABSENT, dtypes
from pallas_kernels._vocabulary.vjp import Inputs


def check(kernel: str, hidden, unembedding, targets, bias, mask, scalars, tile, width_axis=None) -> None:
    """Raises if ranks, shapes, dtypes or values are invalid; `scalars` maps "temperature" and "softcap" to values."""
    for name, array, axes in (("hidden", hidden, "[N, D]"), ("unembedding", unembedding, "[V, D]")):
        require(jnp.ndim(array) == 2, kernel, name, f"has shape {jnp.shape(array)}", f"two axes, {axes}")
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        require(floating, kernel, name, f"has dtype {jnp.result_type(array)}", "floating point", TypeError)
    (N, D), (V, width) = jnp.shape(hidden), jnp.shape(unembedding)
    shards = shards_of(kernel, "width_axis", width_axis)
    of = f"[V, D] with D = {D}, as in hidden" if shards == 1 else f"[V, D/{shards}] with D = {D}, as in hidden"
    require(width * shards == D, kernel, "unembedding", f"has shape {(V, width)}", of)
    require(V > 0, kernel, "unembedding", f"has shape {(V, width)}", "at least one row")
    _check_vector(kernel, "targets", targets, N, "N", "as in hidden", jnp.integer, "integer")
    check_bias(kernel, bias, V)
    if mask is not None:
        _check_vector(kernel, "mask", mask, N, "N", "as in hidden", jnp.bool_, "bool")
    for name, value in scalars.items():
        check_scalar(kernel, name, value)
    if tile is not None:
        whole = isinstance(tile, tuple) and len(tile) == 2 and all(is_integer(size) and size > 0 for size in tile)
        require(whole, kernel, "tile", f"= {tile}", "(tokens, vocabulary), two positive integers")


def check_bias(kernel: str, bias, size: int) -> None:
    if bias is not None:
        _check_vector(kernel, "bias", bias, size, "V", "as in unembedding", jnp.floating, "floating point")


def _check_vector(kernel, name, array, size, symbol, origin, kind, kind_name) -> None:
    shape, dtype = jnp.shape(array), jnp.result_type(array)
    require(shape == (size,), kernel, name, f"has shape {shape}", f"[{symbol}] with {symbol} = {size}, {origin}")
    fits = dtype == kind if kind is jnp.bool_ else jnp.issubdtype(dtype, kind)
    require(fits, kernel, name, f"has dtype {dtype}", kind_name, TypeError)


def is_integer(value) -> bool:
    """True for Python and NumPy integers, but not for bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def shards_of(kernel: str, argument: str, axis_name: str | None) -> int:
    """Size of an axis of the surrounding `shard_map`, 1 for None. Raises ValueError if the axis does not exist."""
    if axis_name is None:
        return 1
    try:
        return lax.axis_size(axis_name)
    except NameError:
        remedy = "a mesh axis of the surrounding shard_map, or None outside of a shard_map"
        raise ValueError(f"{kernel}: {argument} = {axis_name!r}: expected {remedy}") from None


def check_scalar(kernel: str, name: str, value) -> None:
    """Raises unless the temperature or soft cap is a positive finite scalar; `softcap` may also be None."""
    if value is None:
        require(name == "softcap", kernel, name, f"= {value}", "a positive number")
        return
    require(jnp.ndim(value) == 0, kernel, name, f"has shape {jnp.shape(value)}", "a scalar")
    if not isinstance(value, core.Tracer):
        remedy = "a positive finite number" + (" (greedy decoding has no π)" if name == "temperature" else "")
        require(0 < float(value) < float("inf"), kernel, name, f"= {value}", remedy)


def columns_of(kernel: str, vocab_size: int | None, unembedding, axis_name: str | None) -> int:
    """Number of tokens in the vocabulary, over all shards and without padding; checks `vocab_size`."""
    rows = unembedding.shape[0] * shards_of(kernel, "axis_name", axis_name)
    if vocab_size is None:
        return rows
    fits = is_integer(vocab_size) and 0 < vocab_size <= rows
    remedy = f"an integer in [1, {rows}], the number of rows of unembedding"
    require(fits, kernel, "vocab_size", f"= {vocab_size}", remedy)
    return int(vocab_size)


def inputs_of(hidden, unembedding, targets, bias, mask, scalars, vocabulary: int, axis_name: str | None) -> Inputs:
    """The arguments as `Inputs`, cast to vary over every `shard_map` axis over which any of them varies."""
    accumulator = dtypes(hidden, unembedding)[1]
    if targets.dtype.itemsize < 4:  # a narrower dtype may be unable to hold `vocabulary`
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
