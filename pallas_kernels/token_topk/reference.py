"""The definition of token_topk: its equations on dense logits [N, V]."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels._vocabulary.statistics import BANNED
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, TokenStats
from pallas_kernels._vocabulary.vjp import Inputs, shard
from pallas_kernels.token_stats import reference


class TopTokens(NamedTuple):
    """The k most likely tokens of every row, most likely first, returned by `token_topk`.

    `ids` [N, k] is int32; `logp` [N, k] is their log π in nats, in the statistics' dtype. Rows without a target are 0.
    """

    ids: Int[Array, "*N k"]
    logp: Float[Array, "*N k"]


def token_topk(
    inputs: Inputs, k: int, vocabulary: int, axis_name: str | None = None, tile: Tile | None = None
) -> tuple[TokenStats, TopTokens]:
    """The statistics, and the first k columns sorted by x with log π = x − log Σ e^x. `tile` is ignored."""
    hidden, unembedding, bias, targets, beta, softcap = inputs
    present = (targets != ABSENT)[:, None]
    begin, size = shard(vocabulary, axis_name, unembedding.shape[0])
    head = Head(unembedding, bias, beta, softcap, size)
    stats = reference.token_stats(hidden, head, targets, begin, axis_name)

    x = reference.logits(jnp.where(present, hidden, 0), head)
    x = lax.all_gather(x, axis_name, axis=1, tiled=True, to="invarying") if axis_name else x
    x = x[:, :vocabulary]
    x = jnp.where(x <= BANNED, -jnp.inf, x)
    ids = jnp.argsort(x, axis=-1, stable=True, descending=True)[:, :k].astype(jnp.int32)
    log_pi = jnp.where(jnp.all(x == -jnp.inf, axis=-1, keepdims=True), -jnp.inf, jax.nn.log_softmax(x, axis=-1))
    top = TopTokens(ids, jnp.take_along_axis(log_pi, ids, axis=-1))
    return stats, TopTokens(*(jnp.where(present, part, 0) for part in top))
