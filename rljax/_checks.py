"""Checks of arguments at trace time; the errors name the value given and the values expected."""

import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

SHARE = (0.0, math.nextafter(1.0, 2.0))
"""The range [0, 1], for `ranges`."""


def check(holds: bool, argument: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{argument} = {value!r}: expected {wanted}")


def accumulators(**arrays) -> tuple[Array, ...]:
    """The arrays in the dtype of sums: float64 if any of them is float64, else float32."""
    arrays = {name: jnp.asarray(x) for name, x in arrays.items()}
    for name, x in arrays.items():
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            raise TypeError(f"{name} has dtype {x.dtype}: expected real numbers")
    dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in arrays.values()) else jnp.float32
    return tuple(x.astype(dtype) for x in arrays.values())


def require_floating(**arrays) -> None:
    for name, x in arrays.items():
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(f"{name} has dtype {jnp.result_type(x)}: expected floating-point numbers")


def require_mask(mask, axes: str = "") -> Array:
    """The boolean mask as an array; checked against axes such as "P G T" if they are given."""
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask has dtype {mask.dtype}: expected bool, true exactly where the policy chose the token")
    if axes:
        require_rank("mask", mask, axes)
    return mask


def require_segments(segments) -> Array:
    """A boolean mask (one sequence per row) or integer ids (0: not trained), as an array."""
    segments = jnp.asarray(segments)
    if segments.dtype != jnp.bool_ and not jnp.issubdtype(segments.dtype, jnp.integer):
        raise TypeError(f"segments has dtype {segments.dtype}: expected a bool mask or integer ids, 0 = not trained")
    return segments


def require_rank(name: str, x, *axes: str) -> None:
    """Raises ValueError unless the rank of x fits one of `axes`, such as "P G T"."""
    if x.ndim not in [len(a.split()) for a in axes]:
        expected = " or ".join(f"[{', '.join(a.split())}]" for a in axes)
        raise ValueError(f"{name} has shape {x.shape}: expected {expected}")


def require_shape(shape: tuple[int, ...], like: str, **arrays) -> None:
    """Raises unless every array has this shape, the shape of the argument called `like`."""
    for name, x in arrays.items():
        if jnp.shape(x) != shape:
            raise ValueError(f"{name} has shape {jnp.shape(x)}: expected {shape}, as {like}")


def ranges(**intervals: tuple[float, float]) -> Callable:
    """Declares the ranges of hyper-parameters, `name=(low, high)` for low ≤ value < high.

    Values are checked in each call and when an algorithm is built from the function. None and traced values pass.
    """

    def declare(function):
        signature = inspect.signature(function)
        given = {name: signature.parameters[name].default for name in intervals}
        defaults = {name: value for name, value in given.items() if value is not inspect.Parameter.empty}

        @functools.wraps(function)
        def checked(*args, **keywords):
            for name, interval in intervals.items():
                value = keywords.get(name, defaults.get(name))
                if value is not None:
                    require_scalar(name, value)
                    require_range(name, value, *interval)
            return function(*args, **keywords)

        checked.ranges = intervals  # type: ignore[attr-defined]
        return checked

    return declare


def require_scalar(name: str, value: float | Array) -> None:
    if np.ndim(value) != 0:
        raise ValueError(f"{name} has shape {np.shape(value)}: expected one number; for a sweep, stack algorithms "
                         "with jax.tree.map(lambda *x: jnp.stack(x), …) and use jax.vmap")  # fmt: skip


def require_range(name: str, value: float | Array, low: float, high: float = float("inf")) -> None:
    """Raises unless low ≤ each element < high (infinity is in range if high is infinite); ignores traced values."""
    if isinstance(value, Tracer):
        return
    numbers = np.asarray(value)
    if not np.issubdtype(numbers.dtype, np.number) or np.iscomplexobj(numbers):
        raise TypeError(f"{name} = {value!r}: expected a number in {_interval(low, high)}")
    if not np.all((low <= numbers) & ((numbers < high) | (np.isinf(high) & (numbers == high)))):
        raise ValueError(f"{name} = {value}: expected a number in {_interval(low, high)}")


def _interval(low: float, high: float) -> str:
    closed = high in (math.inf, SHARE[1])
    return f"[{low:g}, {high:g}{']' if closed else ')'}"


def require_ordered(low: float | Array, high: float | Array, least: float) -> None:
    """Raises unless least ≤ low ≤ high; ignores traced values."""
    require_between("low", low, least)
    require_between("high", high, least)
    try:
        ordered = float(low) <= float(high)
    except jax.errors.ConcretizationTypeError:
        return
    if not ordered:
        raise ValueError(f"low = {low}: expected at most high = {high}")


def require_share(name: str, value: float | Array) -> None:
    """Raises unless value is a scalar with 0 ≤ value ≤ 1; ignores traced values."""
    require_between(name, value, *SHARE)


def require_between(name: str, value: float | Array, low: float, high: float = float("inf")) -> None:
    """Raises unless value is a scalar with low ≤ value < high; ignores traced values."""
    require_scalar(name, value)
    require_range(name, value, low, high)
