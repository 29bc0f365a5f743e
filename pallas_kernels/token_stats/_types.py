"""The value that token_stats returns, and the dtypes it computes in."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels._dispatch import promoted


class TokenStats(NamedTuple):
    """Per token: log π(y), the entropy of π, and 1 − 2π(y) + Σπ²; 0 where there is no target."""

    logp: Float[Array, "*N"]
    entropy: Float[Array, "*N"]
    proxy: Float[Array, "*N"]


def dtypes(hidden, unembedding):
    """(the products' dtype, the accumulators' dtype): the inputs' common one, and that in at least float32."""
    common = promoted(hidden.dtype, unembedding.dtype)
    return common, promoted(common, jnp.float32)
