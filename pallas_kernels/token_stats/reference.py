"""The definition of token_stats: its equations on dense logits [N, V]."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels._vocabulary.statistics import BANNED
from pallas_kernels._vocabulary.types import ABSENT, Head, TokenStats, dtypes


def token_stats(
    hidden: Float[Array, "N D"], head: Head, targets: Int[Array, " N"], begin=0, axis_name: str | None = None
) -> TokenStats:
    """log π = x − log Σ e^x;  logp = log π(y), entropy = − Σ π log π, proxy = 1 − 2π(y) + Σπ².

    Banned tokens have π = 0 and contribute 0·log 0 = 0 to the entropy; logp of a banned target is −∞, a constant. With
    `axis_name`, `head` is this device's shard, whose first column is `begin`, and sums are over all shards.
    """
    total = partial(lax.psum, axis_name=axis_name) if axis_name else lambda x: x
    present = targets != ABSENT
    rows = head.unembedding.shape[0]
    if not (isinstance(head.size, int) and head.size == rows):  # NaN in padding must not reach ∂hidden
        held = jnp.arange(rows, dtype=jnp.int32)[:, None] < head.size
        head = head._replace(unembedding=jnp.where(held, head.unembedding, 0))
    x = logits(jnp.where(present[:, None], hidden, 0), head)
    v = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
    allowed = (v < head.size) & ~(x <= BANNED)  # true for NaN
    is_target = allowed & (v == targets[:, None] - begin)
    x = jnp.where(allowed, x, 0)

    top = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, where=allowed, initial=BANNED))
    top = lax.pmax(top, axis_name) if axis_name else top
    e = jnp.where(allowed, jnp.exp(jnp.where(allowed, x - top, 0)), 0)
    z = total(jnp.sum(e, axis=-1, keepdims=True))
    z = jnp.where(z == 0, 1, z)  # if all tokens are banned
    log_pi = jnp.where(allowed, x - top - jnp.log(z), 0)
    pi = e / z

    logp = total(jnp.sum(jnp.where(is_target, log_pi, 0), axis=-1))
    may_be = total(jnp.any(is_target, axis=-1).astype(jnp.int32)) > 0
    logp = jnp.where(may_be, logp, lax.stop_gradient(-jnp.log(z[:, 0])) - jnp.inf)
    entropy = -total(jnp.sum(pi * log_pi, axis=-1))
    proxy = 1 - 2 * jnp.exp(logp) + total(jnp.sum(pi * pi, axis=-1))
    return TokenStats(*(jnp.where(present, stat, 0) for stat in (logp, entropy, proxy)))


def logits(hidden: Float[Array, "N D"], head: Head) -> Float[Array, "N V"]:
    """x = c·tanh((h·Wᵀ + b)/c)/τ in at least float32, for padding too; banned tokens keep x = (h·Wᵀ + b)/τ."""
    common, accumulator = dtypes(hidden, head.unembedding)
    h, w = hidden.astype(common), head.unembedding.astype(common)
    infinite = jnp.any(jnp.isinf(w), axis=-1)  # logits of infinite rows are constants, which avoids 0·∞ in ∂h
    z = jnp.einsum("nd,vd->nv", h, jnp.where(infinite[:, None], 0, w), preferred_element_type=accumulator)
    banned = jnp.einsum("nd,vd->nv", h, jnp.where(infinite[:, None], w, 0), preferred_element_type=accumulator)
    z = z + lax.stop_gradient(banned)
    if head.bias is not None:
        z = z + head.bias[None].astype(accumulator)
    x = z * head.beta
    if head.softcap is None:
        return x
    return jnp.where(x <= BANNED, x, head.softcap * jnp.tanh(z / head.softcap) * head.beta)
