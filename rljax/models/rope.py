"""Rotary positions: frequencies, their scaling for longer contexts, and the rotation of queries and keys."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rljax._checks import check


def frequencies(base: float, head_dim: int) -> Float[np.ndarray, "C//2"]:
    """base^(−2i / head_dim) for i < head_dim / 2, in radians per token."""
    return base ** (-np.arange(0, head_dim, 2) / head_dim)


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Frequencies θ divided by `factor`, so that positions up to `factor` times as large turn by the same angles.

    >>> LinearScaling(8.0)(np.array([1.0, 0.5])).tolist()
    [0.125, 0.0625]
    """

    factor: float

    def __post_init__(self):
        _check_positive(self)

    def __call__(self, theta: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
        return theta / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """The scaling of Llama 3: low frequencies θ are divided by `factor`, high ones are kept.

        n(θ) = θ · original_max_position_embeddings / 2π        turns within the original context
        s(θ) = (n − low_freq_factor) / (high_freq_factor − low_freq_factor), clipped to [0, 1]
        θ′ = (1 − s) θ / factor + s θ

    >>> scaling = Llama3Scaling(8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    >>> (scaling(2 * np.pi * np.array([5, 2, 1]) / 8192) * 8192 / 2 / np.pi).round(4).tolist()
    [5.0, 0.8333, 0.125]
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        _check_positive(self)
        check(self.high_freq_factor > self.low_freq_factor, "high_freq_factor", self.high_freq_factor,
              f"more than low_freq_factor = {self.low_freq_factor}")  # fmt: skip

    def __call__(self, theta: Float[np.ndarray, " F"]) -> Float[np.ndarray, " F"]:
        turns = theta * self.original_max_position_embeddings / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        s = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - s) * theta / self.factor + s * theta


def _check_positive(scaling) -> None:
    for name, value in dataclasses.asdict(scaling).items():
        check(0 < value < math.inf, name, value, "a positive number")


def rotation(
    positions: Int[Array, "B T"], theta: Float[np.ndarray, "C//2"], length: int, dtype
) -> tuple[Float[Array, "B T 1 C//2"], Float[Array, "B T 1 C//2"]]:
    """cos and sin of position · θ, for positions below `length`."""
    # Read from a table, because XLA would repeat the computation at every use.
    angle = np.arange(length)[:, None] * theta
    cos, sin = (jnp.asarray(table, dtype)[positions][:, :, None] for table in (np.cos(angle), np.sin(angle)))
    return cos, sin


def rotate(x: Float[Array, "B T H C"], cos: Float[Array, "B T 1 C//2"], sin: Float[Array, "B T 1 C//2"]) -> Array:
    """Rotates each pair (x_i, x_{i + C/2}) by its angle, so that q·k depends only on the difference of positions."""
    a, b = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
