"""Schedules: a number that moves over training, called inside the jitted step with the rollout's step, traced.

    anneal(step) = start + (end − start) · shape(s),    s = min(step/steps, 1)

A shape maps the share s of the way, in [0, 1], to how far the number has come, from 0 to 1.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax._checks import require_between

__all__ = ["anneal", "cosine", "cubic", "linear", "power"]

Share = Float[Array, ""]


def linear(s: Share) -> Share:
    """s: the same pace all the way.

    >>> float(linear(jnp.float32(0.25)))
    0.25
    """
    return s


def cosine(s: Share) -> Share:
    """½(1 − cos πs): slow at both ends.

    >>> float(cosine(jnp.float32(0.25)))
    0.1464
    """
    return 0.5 * (1 - jnp.cos(jnp.pi * s))


def cubic(s: Share) -> Share:
    """3s² − 2s³: slow at both ends, the polynomial of least degree that is flat there.

    >>> float(cubic(jnp.float32(0.25)))
    0.15625
    """
    return s * s * (3 - 2 * s)


def power(n: float) -> Callable[[Share], Share]:
    """The shape s^n: n > 1 moves late, n < 1 early. n > 0.

    >>> float(power(2)(jnp.float32(0.25)))
    0.0625
    """
    require_between("n", n, 1e-30)
    return lambda s: s**n


def anneal(
    step: int | Array,
    *,
    start: float,
    end: float,
    steps: int,
    shape: Callable[[Share], Share] = linear,
) -> Float[Array, ""]:
    """The number at a rollout's step: `start` at 0, `end` from `steps` on, between them as the shape says.

    steps ≥ 1; `step` may be traced.

    >>> [float(anneal(step, start=2.0, end=-2.0, steps=500)) for step in (0, 125, 500, 900)]
    [2.0, 1.0, -2.0, -2.0]
    >>> float(anneal(125, start=0.0, end=1.0, steps=500, shape=power(2)))
    0.0625
    """
    require_between("steps", steps, 1)
    s = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return start + (end - start) * shape(s)
