"""Functions with bound arguments as values: pytrees with equality, a hash and a repr that reads like the call.

Floating-point arguments are pytree leaves, which can be traced, mapped and differentiated. Other arguments are static.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.core import Tracer

from rljax._checks import require_range


class _Number:
    """Placeholder for a leaf in a template."""

    def __repr__(self):
        return "…"

    def __reduce__(self):
        return "NUMBER"


NUMBER = _Number()


def is_number(value: object) -> bool:
    """True for leaves: floating-point numbers and arrays, concrete or traced."""
    return isinstance(value, float | complex | Array | np.ndarray | np.generic | _Number)


@jax.tree_util.register_pytree_node_class
class Bound:
    """`functools.partial(function, *args, **keywords)` as a value.

    `template` is (args, values of the keywords) with NUMBER in place of each leaf. It is fixed at construction, so that
    the structure does not change if leaves are mapped to None, an axis or a tracer.
    """

    __slots__ = ("__weakref__", "function", "leaves", "names", "template")

    def __init__(self, function: Callable, *args, **keywords):
        inspect.signature(function).bind_partial(*args, **keywords)  # raises for unknown names
        keywords = _canonical(function, keywords)
        _require_ranges(function, keywords)
        self.function, self.names = function, tuple(keywords)
        found, tree = jax.tree.flatten(as_value((args, tuple(keywords.values()))))
        self.leaves = tuple(x for x in found if is_number(x))
        self.template = jax.tree.unflatten(tree, [NUMBER if is_number(x) else x for x in found])

    def tree_flatten(self):
        return self.leaves, _Structure(self.function, self.names, self.template)

    @classmethod
    def tree_unflatten(cls, structure, leaves):
        value = object.__new__(cls)
        value.function, value.names, value.template = structure
        value.leaves = tuple(leaves)
        return value

    @property
    def args(self) -> tuple:
        return self._arguments()[0]

    @property
    def keywords(self) -> dict[str, Any]:
        return self._arguments()[1]

    def _arguments(self) -> tuple[tuple, dict[str, Any]]:
        leaves = iter(self.leaves)
        found, tree = jax.tree.flatten(self.template)
        args, values = jax.tree.unflatten(tree, [next(leaves) if x is NUMBER else x for x in found])
        return args, dict(zip(self.names, values, strict=True))

    def made(self) -> Callable:
        """The function that `__call__` applies to its arguments."""
        args, keywords = self._arguments()
        return functools.partial(self.function, *args, **keywords)

    def __call__(self, *args, **keywords):
        return self.made()(*args, **keywords)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.made())

    @property
    def __name__(self) -> str:
        return name_of(self.function)

    @property
    def __doc__(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.function.__doc__

    def __eq__(self, other):
        return _key(self) == _key(other) if type(other) is type(self) else NotImplemented

    def __hash__(self):
        return hash(_key(self))

    def __repr__(self):
        args, keywords = self._arguments()
        inside = [*map(shown, args), *(f"{name}={shown(value)}" for name, value in keywords.items())]
        return f"{self.__name__}({', '.join(inside)})"

    def __reduce__(self):
        return _rebuilt, (type(self), self.function, self.names, self.template, self.leaves)


@jax.tree_util.register_pytree_node_class
class Composed(Bound):
    """A call of a combinator: `function(*args, **keywords)` returns the function to call."""

    __slots__ = ()

    def made(self) -> Callable:
        args, keywords = self._arguments()
        return self.function.__wrapped__(*args, **keywords)


def combinator(make: Callable[..., Callable]) -> Callable[..., Composed]:
    """Decorator for functions that return functions; the results become values that print as the call."""

    @functools.wraps(make)
    def composed(*args, **keywords) -> Composed:
        inspect.signature(make).bind(*args, **keywords)
        return Composed(composed, *args, **keywords)

    return composed


def functions(cls):
    """Registers a frozen dataclass of functions as a pytree, whose leaves are the numbers bound to them."""
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(value):
        fields = {name: getattr(value, name) for name in names}
        nodes = tuple(name for name, f in fields.items() if f is not None and not jax.tree_util.all_leaves([f]))
        rest = tuple((name, field) for name, field in fields.items() if name not in nodes)
        return tuple(fields[name] for name in nodes), (nodes, rest)

    def unflatten(structure, children):
        value = object.__new__(cls)
        nodes, rest = structure
        for name, field in (*zip(nodes, children, strict=True), *rest):
            object.__setattr__(value, name, field)
        return value

    def equal(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return all([getattr(self, name) == getattr(other, name) for name in names])  # a list, so that tracers raise

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    cls.__eq__ = equal  # the default compares tuples, which treat identical objects as equal
    return cls


def convert_fields(value) -> None:
    """Turns the `partial`s among a frozen dataclass's fields into values, in `__post_init__`."""
    for field in dataclasses.fields(value):
        object.__setattr__(value, field.name, as_value(getattr(value, field.name)))


def as_value(argument: Any) -> Any:
    """Turns each `functools.partial` in a pytree into a value; keeps everything else."""

    def converted(leaf):
        return Bound(leaf.func, *leaf.args, **leaf.keywords) if isinstance(leaf, functools.partial) else leaf

    return jax.tree.map(converted, argument, is_leaf=lambda x: isinstance(x, functools.partial))


def name_of(function: Any) -> str:
    """The name of a function, without its bound arguments."""
    if isinstance(function, functools.partial):
        return name_of(function.func)
    return getattr(function, "__name__", None) or type(function).__name__


def shown(value: Any) -> str:
    """An argument as source code: functions by name, numbers in their shortest decimal form."""
    if isinstance(value, functools.partial):
        return shown(as_value(value))
    if type(value) in (list, tuple):
        inside = ", ".join(map(shown, value))
        return f"[{inside}]" if type(value) is list else f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Tracer) or not isinstance(value, Array | np.ndarray | np.generic):
        plain = callable(value) and isinstance(getattr(value, "__name__", None), str) and not isinstance(value, Bound)
        return name_of(value) if plain else repr(value)
    array = np.asarray(value)
    return str(array[()]) if array.ndim == 0 else f"array({array.tolist()})"


class _Structure(typing.NamedTuple):
    """The parts of a value that must be equal for two values to share a trace."""

    function: Callable
    names: tuple[str, ...]
    template: Any

    def __eq__(self, other):
        return isinstance(other, _Structure) and self._key() == other._key()

    def __ne__(self, other):
        return not self == other

    def __hash__(self):
        return hash(self._key())

    def _key(self):
        found, tree = jax.tree.flatten(self.template)
        return self.function, self.names, tuple((type(x), x) for x in found), tree  # 1 differs from True


def _key(value: Bound) -> tuple:
    """The key that equality and hash use."""
    return _Structure(value.function, value.names, value.template), tuple(map(_constant, value.leaves))


def _constant(leaf: Any) -> tuple:
    """Dtype, shape and bytes of a leaf."""
    if isinstance(leaf, Tracer):
        raise TypeError(f"{leaf}: expected concrete hyper-parameters; traced values cannot be compared or hashed")
    if isinstance(leaf, float):
        return float, leaf
    array = np.asarray(leaf)
    return str(array.dtype), array.shape, array.tobytes()


def _rebuilt(cls, function, names, template, leaves):
    return cls.tree_unflatten(_Structure(function, names, template), leaves)


def _canonical(function: Callable, keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords in canonical form: in the signature's order, floats if annotated so, without None defaults."""
    parameters = inspect.signature(function).parameters
    order, found = list(parameters), {}
    for name in sorted(keywords, key=lambda name: (order.index(name) if name in order else len(order), name)):
        parameter, argument = parameters.get(name), keywords[name]
        if argument is None and parameter is not None and parameter.default is None:
            continue
        floating = parameter is not None and _declares_float(parameter.annotation)
        found[name] = _floating(argument) if floating else argument
    return found


def _declares_float(annotation: Any) -> bool:
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return float in parts or "float" in (annotation if isinstance(annotation, str) else "").split(" | ")


def _floating(argument: Any) -> Any:
    """A number or array in a floating-point dtype, so that it has a derivative."""
    if isinstance(argument, bool) or not isinstance(argument, int | float | np.generic | np.ndarray | Array):
        return argument
    if isinstance(argument, int | float):
        return float(argument)
    integer = np.issubdtype(argument.dtype, np.integer)
    return argument.astype(float) if integer else argument


def _require_ranges(function: Callable, keywords: dict[str, Any]) -> None:
    for name, (low, high) in getattr(function, "ranges", {}).items():
        if name in keywords:
            require_range(name, keywords[name], low, high)
