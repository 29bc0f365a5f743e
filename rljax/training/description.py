"""Conversion of configs to JSON, and the differences between two converted configs."""

import copyreg
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rljax._expression import Bound

_SMALL = 16  # arrays with more entries and byte strings with more bytes are described by a digest
_WRAPPERS = (type(functools.cache(len)), type(jax.jit(len)), jax.custom_jvp, jax.custom_vjp)


def describe(value) -> Any:
    """Converts any config to plain JSON, equal in every process that creates the same config.

    Objects become dictionaries of their state, as `pickle` would store it; objects that contain themselves or cannot be
    pickled become a name. Functions become their names and bound values; large arrays become digests.

    >>> describe({"stop": {"b", "a"}, "reward": functools.partial(max, 0.5)})
    {'stop': ['a', 'b'], 'reward': {'function': 'max', 'bound': [0.5, {}]}}
    """
    return _describe(value, ())


def _describe(value, above: tuple[int, ...]) -> Any:
    """`above` holds the ids of the objects that contain `value`."""
    if isinstance(value, bool | int | str | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if id(value) in above:
        return type(value).__qualname__
    item = functools.partial(_describe, above=(*above, id(value)))
    if isinstance(value, Bound):
        keywords = {name: item(argument) for name, argument in value.keywords.items()}
        return {"function": item(value.function), "bound": [*map(item, value.args), keywords]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value, [field.name for field in dataclasses.fields(value)], item)
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return _fields(value, names, item)
    if isinstance(value, functools.partial):
        return {"function": item(value.func), "bound": [*map(item, value.args), item(value.keywords)]}
    if isinstance(value, dict):
        return {_key(key, item): item(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [item(entry) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted((item(entry) for entry in value), key=_text)
    if isinstance(value, bytes | bytearray):
        return str(bytes(value)) if len(value) <= _SMALL else f"{len(value)} bytes, SHA-256 {_digest(value)}"
    if isinstance(value, os.PathLike | np.dtype):
        return str(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _array(value, item)
    if isinstance(value, type) or inspect.ismodule(value):
        return getattr(value, "__qualname__", value.__name__)
    if inspect.isroutine(value) or isinstance(value, _WRAPPERS):
        bound = {} if _is_global(value) else item(_bound(value))
        return {"function": _name(value), "bound": bound} if bound else _name(value)
    return _name(value) if _is_global(value) else _object(value, item)


def _fields(value, names: Iterable[str], item) -> dict:
    return {"type": type(value).__name__, **{name: item(getattr(value, name)) for name in names}}


def _key(key, item) -> str:
    return str(key) if isinstance(key, bool | int | float | str | None) else _text(item(key))


def _text(described) -> str:
    return json.dumps(described, sort_keys=True)


def _digest(data) -> str:
    return hashlib.sha256(data).hexdigest()


def _array(value, item) -> Any:
    if isinstance(value, np.generic):
        plain = value.item()
        return str(plain) if isinstance(plain, np.generic) else item(plain)  # item() of a long double is a long double
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    value = np.asarray(value)
    small = value.size <= _SMALL or value.dtype == object
    content = {"values": item(value.tolist())} if small else {"sha256": _digest(value.tobytes())}
    return {"type": "array", "dtype": str(value.dtype), "shape": list(value.shape), **content}


def _name(function) -> str:
    named = ("__qualname__", "__name__")
    return next((name for at in named if isinstance(name := getattr(function, at, None), str)),
                type(function).__qualname__)  # fmt: skip


def _is_global(value) -> bool:
    """True if `value` is an attribute of its module under its own name, so that the name identifies it."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return callable(value) and module is not None and getattr(module, _name(value), None) is value


def _bound(function) -> dict:
    """The values that a function closes over, its defaults if it is a local function, or the object of a method."""
    if isinstance(function, _WRAPPERS):
        wrapped = function.__wrapped__  # pyright: ignore[reportAttributeAccessIssue]
        return _bound(wrapped) if inspect.isroutine(wrapped) else {"wrapped": wrapped}
    owner = getattr(function, "__self__", None)
    if owner is not None and not isinstance(owner, type) and not inspect.ismodule(owner):
        return {"self": owner}
    if not inspect.isfunction(function):
        return {}
    bound = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            if cell.cell_contents is not function:
                bound[name] = cell.cell_contents
        except ValueError:  # empty cell
            pass
    if "<" in function.__qualname__:
        defaults = {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
        bound |= {name: values for name, values in defaults.items() if values}
    return bound


def _reduced(value) -> tuple:
    """(arguments, state, list items, dictionary entries) of an object, as `pickle` would store them."""
    reduce = copyreg.dispatch_table.get(type(value))
    reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    if isinstance(reduced, str):
        return (reduced,), None, (), ()
    parts: list[Any] = [*reduced, None, None, None]
    _, arguments, state, items, entries = parts[:5]
    return [a for a in arguments if a is not type(value)], state, list(items or ()), dict(entries or ())


def _state(value) -> dict:
    """The content that `pickle` would store of an object, as one dictionary."""
    arguments, state, items, entries = _reduced(value)
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # with __slots__
        state = {**(state[0] or {}), **state[1]}
    whole = {"arguments": arguments, "items": items, "entries": entries}
    whole = {name: part for name, part in whole.items() if part}
    if isinstance(state, dict):
        return {**{str(name): part for name, part in state.items()}, **whole}
    return whole if state is None else {**whole, "state": state}


def _object(value, item) -> Any:
    try:
        state = _state(value)
    except Exception:  # cannot be pickled
        text = repr(value)
        return type(value).__qualname__ if " at 0x" in text else text
    return {"type": type(value).__name__, **{name: item(part) for name, part in state.items()}}


def differences(a, b, name: str = "") -> list[str]:
    """The fields that differ between two described configs, as `name: a -> b`."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(a.keys() | b.keys())
        return [d for key in keys for d in differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)]
    return [] if a == b else [f"{name}: {a!r} -> {b!r}"]
