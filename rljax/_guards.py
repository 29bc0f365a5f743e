"""Guards: a value with the gradient of another, finite numbers instead of infinities, and rounding."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_jvp
def with_gradient_of(value: Array, x: Array) -> Array:
    """sg(value − x) + x without rounding, also if x is infinite or much larger than `value`."""
    return value


@with_gradient_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


def finite(x: Array) -> Array:
    """x with ±1e30 instead of ±∞: e^x and e^−x are unchanged, and differences and weighted means are not NaN."""
    return with_gradient_of(jnp.clip(x, -1e30, 1e30), x)


def rounding_of(x: Array) -> Array:
    """8 units in the last place of |x|, a bound on the effect of summation order; 0 for ±∞."""
    return jnp.where(jnp.isfinite(x), 8 * float(jnp.finfo(x.dtype).eps) * jnp.abs(x), 0.0)


def alike(x: Array, members: Array, axis: int | None = None) -> Array:
    """True if the members' values along the axis (default: all axes) are equal up to rounding.

    True without members; false if a member is NaN. Reduced axes are kept with size 1.
    """
    highest = jnp.max(x, axis=axis, keepdims=True, where=members, initial=-jnp.inf)
    lowest = jnp.min(x, axis=axis, keepdims=True, where=members, initial=jnp.inf)
    return highest - lowest <= rounding_of(jnp.maximum(jnp.abs(highest), jnp.abs(lowest)))
