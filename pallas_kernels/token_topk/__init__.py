"""The k likeliest tokens of every row beside its statistics, in the same pass: what a teacher says in distillation."""

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
    """`token_stats` of every row, and its k likeliest tokens, from one pass over the vocabulary.

        ids  = the k tokens v of the largest π(v), the largest first, of equal ones the lower id
        logp = log π(ids)                      normalized over the whole vocabulary, so Σ_k e^logp ≤ 1

    Both are [N, k], int32 and the dtype of the statistics.  All arguments but k, from 1 to the size of the vocabulary,
    are those of `token_stats`, and so is π.  A row whose `mask` is false or whose target is outside [0, vocab_size) has
    0 for its statistics, ids and logp, whatever it holds; 0 is some token's id, so such rows are for the same mask to
    leave out.  Banned tokens come last, of logp −∞.  Padding rows of the weight are never among the ids.  With
    `axis_name` the ids count over the whole vocabulary, and the outputs are the same on each device of that axis.

    Statistics, ids and logp are constants: no gradient passes.  `token_stats` has the gradients.

    Raises ValueError for ranks, sizes, k, a temperature or an implementation that do not fit, TypeError for dtypes.

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
    require(is_integer(k) and 1 <= k <= columns, kernel, "k", k, f"an integer in [1, {columns}], the vocabulary's")
    run = IMPLEMENTATIONS[chosen(kernel, implementation, (None, *IMPLEMENTATIONS)) or "chunked"]
    hidden, unembedding, bias = lax.stop_gradient((hidden, unembedding, bias))
    inputs = inputs_of(hidden, unembedding, targets, bias, mask, scalars, columns, axis_name)
    if hidden.shape[0] == 0:
        zero = jnp.zeros(0, inputs.beta.dtype)
        return TokenStats(zero, zero, zero), TopTokens(jnp.zeros((0, k), jnp.int32), jnp.zeros((0, k), zero.dtype))
    return run(inputs, k, columns, axis_name, tile if tile is None else Tile(*tile))
