"""Choice of the implementation, argument checks, dtypes and mesh axes, shared by all kernels."""

from collections.abc import Callable, Iterable
from functools import partial, reduce, wraps
from inspect import signature
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])

PLATFORMS = {"tpu": ("tpu",), "gpu": ("cuda",)}  # XLA's platform names by implementation
DEVICES = {"tpu": "a TPU", "gpu": "an NVIDIA GPU"}


def chosen(kernel: str, implementation: str | None, available: Iterable[str | None]) -> str | None:
    names = ", ".join(repr(name) for name in available if name is not None)
    require(implementation in available, kernel, "implementation", f"= {implementation!r}", f"None or one of {names}")
    return implementation


def by_platform(kernel: str, **implementations: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs the implementation for the platform it is lowered for; `chunked` on other platforms.

    Operations are in the named scope `{kernel}_{implementation}`, and derivatives are those of `chunked`. Arguments may
    be pytrees; leaves that are not arrays are static.
    """
    scoped = {name: jax.named_scope(f"{kernel}_{name}")(function) for name, function in implementations.items()}
    default = scoped.pop("chunked")
    branches = {platform: run for name, run in scoped.items() for platform in PLATFORMS[name]}

    def run(*arguments):
        leaves, tree = jax.tree.flatten(arguments)
        is_array = [isinstance(leaf, Array) for leaf in leaves]
        known = [None if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]

        def bound(function):
            def call(*arrays):
                rest = iter(arrays)
                return function(*tree.unflatten(next(rest) if a else k for a, k in zip(is_array, known, strict=True)))

            return call

        arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
        others = {platform: bound(function) for platform, function in branches.items()}
        return _with_derivative_of(bound(default), others)(*arrays)

    return run


def _with_derivative_of(default: Callable[..., Any], branches: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    if not branches:
        return default
    function = jax.custom_vjp(lambda *arrays: lax.platform_dependent(*arrays, default=default, **branches))
    function.defvjp(lambda *arrays: (function(*arrays), arrays), lambda arrays, c: jax.vjp(default, *arrays)[1](c))
    return function


_placed = Primitive("placed")  # the identity; lowering it for an unsupported platform raises
_placed.def_impl(lambda x, **named: jax.jit(partial(_placed.bind, **named))(x))
_placed.def_abstract_eval(lambda x, **named: x)


def only_on(kernel: str, implementation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose first argument is an array, in a named scope; lowering it for another platform raises.

    Pallas' interpreter runs TPU kernels on any platform, so there the platform is not checked.
    """
    scoped = jax.named_scope(f"{kernel}_{implementation}")(function)

    def run(x, *others):
        if not _interpreted():
            x = _placed.bind(x, kernel=kernel, implementation=implementation)
        return scoped(x, *others)

    return run


def _interpreted() -> bool:
    unvarying = jax.typeof(jnp.zeros(())).manual_axis_type  # shard_map requires it in every output type
    out = jax.ShapeDtypeStruct((8, 128), jnp.float32, manual_axis_type=unvarying)
    kernel = pl.pallas_call(lambda out: None, out)
    return any(equation.params.get("interpret") for equation in jax.make_jaxpr(kernel)().eqns)


def _lower_placed(ctx, x, *, kernel, implementation):
    platforms = set(ctx.platforms or ctx.module_context.platforms)
    if not platforms <= set(PLATFORMS[implementation]):
        raise NotImplementedError(
            f"{kernel}: implementation = {implementation!r}: expected {DEVICES[implementation]}, not "
            f"{', '.join(sorted(platforms))}; None picks the platform's default, and 'chunked' runs on any platform"
        )
    return [x]


mlir.register_lowering(_placed, _lower_placed)
batching.primitive_batchers[_placed] = lambda arrays, axes, **named: (_placed.bind(*arrays, **named), axes[0])


def require(fits: bool, kernel: str, argument: str, value: object, remedy: str, error: type[Exception] = ValueError):
    """Raises `error` unless `fits`. `value` follows the argument's name: "= 0" or "has shape (3,)"."""
    if not fits:
        raise error(f"{kernel}: {argument} {value}: expected {remedy}")


def promoted(*dtypes):
    """The common dtype of `dtypes`, also under strict promotion; the caller casts explicitly."""
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, dtypes)


def axes_of(*arrays: Array | None) -> frozenset:
    """The `shard_map` axes over which any of the arrays varies; empty outside of `shard_map`."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None))


def varying_over(axes: frozenset, *arrays: Array | None) -> tuple[Any, ...]:
    """The arrays, each cast to vary over the axes; None stays None.

    The transpose of the cast sums the gradient of an array that was replicated over the axes.
    """

    def spread(x):
        missing = () if x is None else tuple(sorted(axes - axes_of(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return tuple(map(spread, arrays))


def on_explicit_axes(spec: Callable[[PartitionSpec], PartitionSpec]) -> Callable[[Function], Function]:
    """Decorator of functions whose loops slice array axes that may be sharded over mesh axes of AxisType.Explicit.

    These mesh axes become Auto within the function. `spec` maps the first argument's PartitionSpec to the outputs'.
    """

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*arguments, **options):
            leaves, tree = jax.tree.flatten((arguments, options))
            arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Array)}
            mesh = next((mesh for x in arrays.values() if (mesh := jax.typeof(x).sharding.mesh).explicit_axes), None)
            if mesh is None:
                return function(*arguments, **options)

            def within(arrays):
                positional, named = tree.unflatten(arrays.get(i, leaf) for i, leaf in enumerate(leaves))
                return function(*positional, **named)

            first = next(iter(signature(function).bind(*arguments, **options).arguments.values()))
            sharding = NamedSharding(mesh, spec(jax.typeof(first).sharding.spec))
            return jax.sharding.auto_axes(within, axes=mesh.explicit_axes, out_sharding=sharding)(arrays)

        return cast(Function, call)

    return decorate


def rows_of(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*spec[:1])
