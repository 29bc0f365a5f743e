"""Types shared by token_stats, token_topk and token_kl, and the dtypes of products and accumulators."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels._dispatch import promoted

# Values of a row's target other than a column of the local part of the weight.
ELSEWHERE = -1  # the target is a column of another shard or slab; the row still counts in the local sums
ABSENT = -2  # the row has no target and may hold NaN; a tile without any target is skipped


class TokenStats(NamedTuple):
    """Statistics of every token, returned by `token_stats` and `token_topk`; 0 in rows without a target.

    `logp` is log π(y) in nats, `entropy` is − Σ π log π in nats, and `proxy` is 1 − 2π(y) + Σπ², the squared norm of
    the gradient of logp with respect to the logits. Each is [N], float32 (float64 if `hidden` or `unembedding` is).
    """

    logp: Float[Array, "*N"]
    entropy: Float[Array, "*N"]
    proxy: Float[Array, "*N"]


class Head(NamedTuple):
    """Parameters of the logits x = β·c·tanh((h·Wᵀ + b)/c), or x = β·(h·Wᵀ + b) if `softcap` is None.

    W is `unembedding`, b is `bias`, β is `beta` = 1/τ and c is `softcap`. Rows of W from `size` on are padding.
    """

    unembedding: Float[Array, "V D"]
    bias: Float[Array, " V"] | None
    beta: Float[Array, ""]
    softcap: Float[Array, ""] | None
    size: int | Int[Array, ""]


class Tile(NamedTuple):
    """Rows (tokens) and columns (vocabulary) of a tile of logits."""

    tokens: int
    vocabulary: int


def dtypes(hidden, unembedding):
    """(dtype of products, dtype of accumulators): the common dtype of the inputs, and its promotion with float32."""
    common = promoted(hidden.dtype, unembedding.dtype)
    return common, promoted(common, jnp.float32)
