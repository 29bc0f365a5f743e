"""The operations of a scan: a compensated sum, accurate at any length, and a minimum."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Operation(NamedTuple):
    """`combine` is associative and commutative, with identity `empty`; `reduce` does it along axes.

    A long chain keeps a pair (total, error), (`empty`, 0) at first; `absorb(total, error, x)` is the pair with x too.
    """

    name: str
    combine: Callable[[Array, Array], Array]
    empty: float
    reduce: Callable[..., Array]
    absorb: Callable[[Array, Array, Array], tuple[Array, Array]]


def _compensated_sum(total, error, x):
    """Kahan's: what a rounding lost goes into the next, so that n terms err by 2 ulp of Σ|x|, not by n."""
    x = x + error
    larger = total + x
    return larger, jnp.where(jnp.isfinite(larger), x - (larger - total), 0)


def _smaller(total, error, x):
    return jnp.minimum(total, x), error


SUM = Operation("segmented_cumsum", jnp.add, 0.0, jnp.sum, _compensated_sum)
MINIMUM = Operation("segmented_cummin", jnp.minimum, jnp.inf, jnp.min, _smaller)
