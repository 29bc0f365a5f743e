"""The values that pass between token_stats' parts, and the dtypes it computes in."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels._dispatch import promoted

# What a row's target may be beside a column of the weight at hand.
ELSEWHERE = -1  # a column of another shard or slab: the row counts, and no column here is its target
ABSENT = -2  # there is nothing to learn: the row may hold NaN, and is not computed where a whole tile is like it


class TokenStats(NamedTuple):
    """Per token: log π(y), the entropy of π, and 1 − 2π(y) + Σπ²; 0 where there is no target."""

    logp: Float[Array, "*N"]
    entropy: Float[Array, "*N"]
    proxy: Float[Array, "*N"]


class Head(NamedTuple):
    """What makes logits of hidden states: x = β·c·tanh((h·Wᵀ + b)/c), or β·(h·Wᵀ + b) without c.

    `beta` is 1/τ and `softcap` c; rows of W from `size` on are padding, at which there is no x.
    """

    unembedding: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    beta: Float[Array, ""]
    softcap: Float[Array, ""] | None
    size: int | Int[Array, ""]


class Tile(NamedTuple):
    """Rows and columns of a tile of logits."""

    tokens: int
    vocabulary: int


def dtypes(hidden, unembedding):
    """(the products' dtype, the accumulators' dtype): the inputs' common one, and that in at least float32."""
    common = promoted(hidden.dtype, unembedding.dtype)
    return common, promoted(common, jnp.float32)
