"""What every kernel needs at its door: which implementation runs, argument checks, and dtypes."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

PLATFORM_KERNELS = ("tpu", "gpu")  # written later; their names are taken


def select(kernel: str, implementation: str | None, available: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function named `implementation`, or the best there is for the platform where it is None.

    Raises NotImplementedError for a platform kernel that does not exist yet, ValueError for an unknown name.
    """
    if implementation is None:
        # Once `available` has a "tpu" or a "gpu", choose here by lax.platform_dependent: jax.default_backend() would
        # see the host's platform where a program is compiled ahead of time for another.
        return available["chunked"]
    if implementation in available:
        return available[implementation]
    names = ", ".join(repr(name) for name in available)
    if implementation in PLATFORM_KERNELS:
        raise NotImplementedError(
            f"{kernel}: implementation={implementation!r} is not written yet; "
            f"there are {names}, and None picks the best of them"
        )
    raise ValueError(f"{kernel}: implementation={implementation!r} is unknown; it should be None or one of {names}")


def require(fits: bool, kernel: str, argument: str, value: object, remedy: str, error: type[Exception] = ValueError):
    """Raises `error` naming the argument, what it was and what would be right, unless it fits."""
    if not fits:
        raise error(f"{kernel}: {argument} is {value}; it should be {remedy}")


def promoted(*dtypes):
    """The common dtype of some that are about to be cast to it by hand, so that strict promotion has no objection."""
    with jax.numpy_dtype_promotion("standard"):
        return reduce(jnp.promote_types, dtypes)


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each varying over all axes of a `shard_map` that one of them varies over; elsewhere as they are.

    What was replicated there has its gradient summed over those axes, as the transpose of replication.
    """
    axes = [jax.typeof(x).manual_axis_type.varying for x in arrays]
    missing = [tuple(sorted(frozenset().union(*axes) - own)) for own in axes]
    return tuple(lax.pcast(x, axis, to="varying") for x, axis in zip(arrays, missing, strict=True))
