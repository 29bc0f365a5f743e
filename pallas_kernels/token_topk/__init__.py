"""Statistics and the k most likely tokens of every row in one pass, for instance of a teacher in distillation."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels._dispatch import chosen, on_explicit_axes, require, rows_of
from pallas_kernels._vocabulary.arguments import check, columns_of, inputs_of, is_integer
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.token_stats import TokenStats
from pallas_kernels.token_topk import chunked, reference
from pallas_kernels.token_topk.reference import TopTokens

__all__ = ["TopTokens", "token_topk"]

IMPLEMENTATIONS = {"reference": reference.token_topk, "chunked": chunked.token_topk}


@on_explicit_axes(rows_of)
def token_topk(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    k: int,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: float | Float[Array, ""] | None = None,
    bias: Float[Array, " V"] | None = None,
    mask: Bool[Array, " N"] | None = None,
    vocab_size: int | None = None,
    axis_name: str | None = None,
    tile: tuple[int, int] | None = None,
    implementation: str | None = None,
) -> tuple[TokenStats, TopTokens]:
    """`token_stats` and the k most likely tokens of every row, from one pass over the vocabulary.

        ids  = the k tokens v with the largest π(v), largest first; ties in order of id
        logp = log π(ids), normalized over the whole vocabulary, so Σ_k e^logp ≤ 1

    π is the policy of `token_stats`, but all outputs are constants here (stop_gradient). Banned tokens come last,
    with logp −∞; padding is never among the ids. Both implementations are XLA programs, never run on a TPU or GPU.

    Args:
      hidden: h, [N, D], floating point.
      unembedding: W, [V, D], floating point; this device's rows if `axis_name` is given.
      targets: y, [N], integers; a row whose target is outside [0, vocab_size) has no target.
      k: Number of tokens per row, from 1 to the size of the vocabulary.
      temperature: τ > 0, a scalar; may be traced.
      softcap: c > 0, a scalar in units of logits, or None; may be traced.
      bias: b, [V], floating point, or None for 0; −∞ bans a token.
      mask: [N], bool; rows where it is false have no target. None is true everywhere.
      vocab_size: Number of tokens; rows of W and b from `vocab_size` on are padding. None: every row is a token.
      axis_name: Axis of the surrounding `shard_map` that shards the vocabulary, or None. `targets`, `vocab_size` and
        the ids refer to all rows. All devices of the axis get the same outputs.
      tile: (tokens, vocabulary), the shape of the tile of logits in memory; None is the default.
      implementation: "reference" (dense, the definition) or "chunked" (tiles under XLA); None is "chunked".

    Returns:
      (`TokenStats`, `TopTokens`). Ids are [N, k] in int32; logp is [N, k] in nats, in the dtype of the statistics. All
        are 0 in rows without a target; 0 is also a token's id, so mask such rows.

    Raises:
      ValueError: If a rank, shape, k, temperature, soft cap, tile, mesh axis or implementation name is invalid.
      TypeError: If a dtype is invalid.

    >>> import jax.numpy as jnp
    >>> W = jnp.log(jnp.array([[1.0], [4.0], [1.0], [2.0]]))
    >>> stats, top = token_topk(jnp.ones((2, 1)), W, jnp.array([3, -1]), k=3)
    >>> top.ids.tolist()
    [[1, 3, 0], [0, 0, 0]]
    >>> jnp.exp(top.logp[0]).tolist(), float(jnp.exp(stats.logp[0]))
    ([0.5, 0.25, 0.125], 0.25)
    """
    kernel, scalars = "token_topk", {"temperature": temperature, "softcap": softcap}
    check(kernel, hidden, unembedding, targets, bias, mask, scalars, tile)
    columns = columns_of(kernel, vocab_size, unembedding, axis_name)
    remedy = f"an integer in [1, {columns}], the size of the vocabulary"
    require(is_integer(k) and 1 <= k <= columns, kernel, "k", f"= {k}", remedy)
    run = IMPLEMENTATIONS[chosen(kernel, implementation, (None, *IMPLEMENTATIONS)) or "chunked"]
    hidden, unembedding, bias = lax.stop_gradient((hidden, unembedding, bias))
    inputs = inputs_of(hidden, unembedding, targets, bias, mask, scalars, columns, axis_name)
    if hidden.shape[0] == 0:
        zero = jnp.zeros(0, inputs.beta.dtype)
        return TokenStats(zero, zero, zero), TopTokens(jnp.zeros((0, k), jnp.int32), jnp.zeros((0, k), zero.dtype))
    return run(inputs, k, columns, axis_name, tile if tile is None else Tile(*tile))
