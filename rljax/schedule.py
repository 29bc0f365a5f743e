"""Schedules of hyper-parameters, as functions of the number of rollouts so far, which may be traced.

A *shape* maps the elapsed share `s` of a schedule, a scalar in [0, 1], to the share of the change that is done.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax._checks import require_between

__all__ = ["anneal", "cosine", "cubic", "linear", "power"]

Share = Float[Array, ""]


def linear(s: Share) -> Share:
    """The linear shape, `s`; `cosine` and `cubic` are slower at both ends.

    >>> float(linear(jnp.float32(0.25)))
    0.25
    """
    return s


def cosine(s: Share) -> Share:
    """The cosine shape of `s`, ½(1 − cos πs), flat at both ends, as is `cubic`.

    >>> float(cosine(jnp.float32(0.25)))
    0.1464
    """
    return 0.5 * (1 - jnp.cos(jnp.pi * s))


def cubic(s: Share) -> Share:
    """The cubic shape of `s`, 3s² − 2s³, flat at both ends, as is `cosine`.

    >>> float(cubic(jnp.float32(0.25)))
    0.15625
    """
    return s * s * (3 - 2 * s)


def power(n: float) -> Callable[[Share], Share]:
    """The shape s^n: most of the change is late if `n` > 1 and early if n < 1; `power(1)` is `linear`.

    Returns a function of s. Raises ValueError if n ≤ 0.

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
    """The value of a schedule at a step: `start` at step 0, `end` from step `steps` on, in between as given by `shape`.

        start + (end − start) · shape(min(step/steps, 1))

    Unlike an `optax` schedule, which counts optimizer steps, it counts rollouts.

    Args:
      step: Number of rollouts so far, from 0; may be traced.
      start: First value, in the unit of the hyper-parameter.
      end: Last value, in the same unit.
      steps: Length of the schedule in rollouts; steps ≥ 1.
      shape: Function from [0, 1] to [0, 1], such as `linear`, `cosine`, `cubic` or `power(n)`.

    Returns:
      The value, a scalar in float32.

    Raises:
      ValueError: If steps < 1.

    >>> [float(anneal(step, start=2.0, end=-2.0, steps=500)) for step in (0, 125, 500, 900)]
    [2.0, 1.0, -2.0, -2.0]
    >>> float(anneal(125, start=0.0, end=1.0, steps=500, shape=power(2)))
    0.0625
    """
    require_between("steps", steps, 1)
    s = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0)
    return start + (end - start) * shape(s)
