"""Guards, visible where they are used: a value with another's gradient, and numbers in place of infinities."""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_jvp
def with_gradient_of(value: Array, x: Array) -> Array:
    """sg(value − x) + x to the last digit, also where x is infinite or much larger than the value."""
    return value


@with_gradient_of.defjvp
def _(primals, tangents):
    return primals[0], tangents[1]


def finite(x: Array) -> Array:
    """x with ±1e30 for ±∞: e^x and e^−x are the same, and differences and weighted means of such are no NaN."""
    return with_gradient_of(jnp.clip(x, -1e30, 1e30), x)
