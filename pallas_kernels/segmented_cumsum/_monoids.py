"""The two operations of a scan: a compensated (Kahan) sum and a minimum."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Operation(NamedTuple):
    """An associative, commutative operation: `combine` two arrays, `reduce` along axes, with identity `empty`.

    A loop carries (total, error), initially (`empty`, 0); `absorb(total, error, x)` combines x into this pair.
    """

    name: str
    combine: Callable[[Array, Array], Array]
    empty: float
    reduce: Callable[..., Array]
    absorb: Callable[[Array, Array, Array], tuple[Array, Array]]


def _compensated_sum(total, error, x):
    """Kahan summation: the rounding error is added to the next term, so n terms err by about 2 ulp of Σ|x|, not n."""
    x = x + error
    larger = total + x
    return larger, jnp.where(jnp.isfinite(larger), x - (larger - total), 0)


def _smaller(total, error, x):
    return jnp.minimum(total, x), error


SUM = Operation("segmented_cumsum", jnp.add, 0.0, jnp.sum, _compensated_sum)
MINIMUM = Operation("segmented_cummin", jnp.minimum, jnp.inf, jnp.min, _smaller)
