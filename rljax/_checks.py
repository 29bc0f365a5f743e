"""Trace-time checks of arguments, in plain words: what was given, and what would be right."""

import jax
import jax.numpy as jnp
from jax import Array


def check(holds: bool, argument: str, value: object, wanted: str) -> None:
    """Raises the one error that every field out of range gives: its name, its value, what would be right."""
    if not holds:
        raise ValueError(f"{argument} = {value!r}: expected {wanted}")


def accumulators(**arrays) -> tuple[Array, ...]:
    """The arrays in the dtype that sums are made in: float64 where any of them is float64, else float32."""
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    for name, x in arrays.items():
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"{name} has dtype {x.dtype}: expected real numbers")
    dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in arrays.values()) else jnp.float32
    return tuple(x.astype(dtype) for x in arrays.values())


def require_floating(**arrays) -> None:
    """Raises for an integer or boolean array where only a floating one makes sense."""
    for name, x in arrays.items():
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"{name} has dtype {jnp.result_type(x)}: expected floating numbers")


def require_mask(mask, axes: str = "") -> Array:
    """A boolean mask, of the axes given as in "P G T"."""
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}: expected bool, true exactly where the policy chose the token")
    if axes:
        require_rank("mask", mask, axes)
    return mask


def require_segments(segments) -> Array:
    """A boolean mask (one sequence a row) or integer ids (0 where no token is trained)."""
    segments = jnp.asarray(segments)
    if segments.dtype != jnp.bool_ and not jnp.issubdtype(segments.dtype, jnp.integer):
        raise TypeError(f"segments have dtype {segments.dtype}: expected a bool mask or int32 ids, 0 = not trained")
    return segments


def require_rank(name: str, x, *axes: str) -> None:
    """Raises unless x has one of the axes given as in "P G T"."""
    if x.ndim not in [len(a.split()) for a in axes]:
        expected = " or ".join(f"[{', '.join(a.split())}]" for a in axes)
        raise ValueError(f"{name} has shape {x.shape}: expected {expected}")


def require_shape(shape: tuple[int, ...], like: str, **arrays) -> None:
    """Raises unless every array has the shape, which is that of the argument called `like`."""
    for name, x in arrays.items():
        if jnp.shape(x) != shape:
            raise ValueError(f"{name} has shape {jnp.shape(x)}: expected {shape}, as {like}")


def require_ordered(low: float | Array, high: float | Array, least: float) -> None:
    """Raises unless least ≤ low ≤ high; traced values are not looked at."""
    require_between("low", low, least)
    require_between("high", high, least)
    try:
        ordered = float(low) <= float(high)
    except jax.errors.ConcretizationTypeError:
        return
    if not ordered:
        raise ValueError(f"low = {low}: expected at most high = {high}")


def require_at_least(name: str, value: float | Array, low: float) -> None:
    """Raises unless low ≤ value ≤ inf; a traced value is not looked at."""
    try:
        unbounded = float(value) == float("inf")
    except jax.errors.ConcretizationTypeError:
        return
    if not unbounded:
        require_between(name, value, low)


def require_between(name: str, value: float | Array, low: float, high: float = float("inf")) -> None:
    """Raises unless low ≤ value < high; a traced value is not looked at."""
    try:
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    if not low <= number < high:
        raise ValueError(f"{name} = {value}: expected a number in [{low:g}, {high:g})")
