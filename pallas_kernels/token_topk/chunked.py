"""token_topk over tiles of tokens × vocabulary under XLA: the pass of token_stats with a running top k of the logits.

    best ← the k largest of best ∪ tile,      log π_v = x_v − m − log S after the last tile

`lax.top_k` returns the first of equal entries, and tiles and shards are visited in order, so the lower id comes first.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from pallas_kernels._vocabulary.statistics import BANNED, finish, joined_over, no_columns
from pallas_kernels._vocabulary.types import ABSENT, Head, Tile, TokenStats
from pallas_kernels._vocabulary.vjp import Inputs, localized, shard
from pallas_kernels.token_stats.chunked import Seen, absorb, over_columns
from pallas_kernels.token_topk.reference import TopTokens


class Best(NamedTuple):
    """Ids and logits of the k largest logits among the columns seen so far, [N, k] each; −∞ in unused places."""

    ids: Array
    x: Array


def token_topk(
    inputs: Inputs, k: int, vocabulary: int, axis_name: str | None = None, tile: Tile | None = None
) -> tuple[TokenStats, TopTokens]:
    hidden, unembedding, bias, targets, beta, softcap = inputs
    rows = unembedding.shape[0]
    begin, size = shard(vocabulary, axis_name, rows)
    head = Head(unembedding, bias, beta, softcap, size)

    def nothing(y):
        best = Best(jnp.zeros_like(y, shape=(*y.shape, k)), jnp.full_like(y, -jnp.inf, beta.dtype, (*y.shape, k)))
        return no_columns(y, beta.dtype), best

    def add(known, seen: Seen):
        sums, best = known
        return absorb(sums, seen), with_tile(best, seen.x, seen.first, seen.is_column)

    sums, best = over_columns(hidden, head, localized(targets, begin, rows), tile, nothing, add)
    if axis_name is not None:
        sums, best = joined_over(sums, axis_name), best_over(best._replace(ids=best.ids + begin), axis_name)
    stats, (top, log_total) = finish(sums, targets)
    logp = (best.x - top[:, None]) - log_total[:, None] + jnp.where(best.x <= BANNED, -jnp.inf, 0)
    present = (targets != ABSENT)[:, None]
    return stats, TopTokens(*(jnp.where(present, part, 0) for part in (best.ids, logp)))


def with_tile(best: Best, x, first, is_column) -> Best:
    """Merges one more tile of logits x [n, v], whose columns start at `first`, into the running top k.

    Padding is never selected: its logit is −∞, while the logit of a banned token is finite.
    """
    k = best.x.shape[1]
    x = x if is_column is None else jnp.where(is_column, x, -jnp.inf)
    largest, places = lax.top_k(jnp.concatenate([best.x, x], axis=1), k)
    old = jnp.take_along_axis(best.ids, jnp.minimum(places, k - 1), axis=1)
    return Best(jnp.where(places < k, old, first + places - k), largest)


def best_over(best: Best, axis_name: str) -> Best:
    """The top k over all shards of the vocabulary, equal on each."""
    ids, x = (lax.all_gather(part, axis_name, axis=1, tiled=True, to="invarying") for part in best)
    x, places = lax.top_k(x, best.x.shape[1])
    return Best(jnp.take_along_axis(ids, places, axis=1), x)
