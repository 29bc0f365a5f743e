"""A config as plain JSON, and how two of them differ."""

import dataclasses
import functools
import inspect
import math
from typing import Any


def describe(value) -> Any:
    """Any config as plain JSON: dataclasses as dictionaries, functions by name, with what is bound to them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, [field.name for field in dataclasses.fields(value)])
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return _fields(value, names)
    if isinstance(value, functools.partial):
        return {"function": describe(value.func), "bound": [*map(describe, value.args), describe(value.keywords)]}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if callable(value):
        name, bound = getattr(value, "__qualname__", type(value).__qualname__), _bound(value)
        return {"function": name, "bound": describe(bound)} if bound else name
    finite = isinstance(value, bool | int | str | None) or (isinstance(value, float) and math.isfinite(value))
    return value if finite else str(value)


def _fields(value, names) -> dict:
    return {"type": type(value).__name__, **{name: describe(getattr(value, name)) for name in names}}


def _bound(function) -> dict:
    """What a function closes over, or the attributes of the object whose method it is."""
    if inspect.ismethod(function):
        return {name: item for name, item in vars(function.__self__).items() if not inspect.ismethod(item)}
    closure = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    return {name: item for name, item in closure.items() if item is not function}


def differences(a, b, name: str = "") -> list[str]:
    """The fields in which two described configs differ, as `name: a -> b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
    return [] if a == b else [f"{name}: {a!r} -> {b!r}"]
