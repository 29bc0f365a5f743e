"""token_stats as its equations say it, with the logits [N, V] in memory.  This is the definition."""

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

    π is 0 for banned tokens, whose log π is a constant: −∞ if y is one, and 0·log 0 = 0 in the entropy.  Sums
    are over the columns of all shards on `axis_name`, of which `head` is this device's, from column `begin` on.
    """
    total = partial(lax.psum, axis_name=axis_name) if axis_name else lambda x: x
    present = targets != ABSENT
    rows = head.unembedding.shape[0]
    if not (isinstance(head.size, int) and head.size == rows):  # what padding holds is not to reach ∂hidden
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
    z = jnp.where(z == 0, 1, z)  # all tokens are banned
    log_pi = jnp.where(allowed, x - top - jnp.log(z), 0)
    pi = e / z

    logp = total(jnp.sum(jnp.where(is_target, log_pi, 0), axis=-1))
    may_be = total(jnp.any(is_target, axis=-1).astype(jnp.int32)) > 0
    logp = jnp.where(may_be, logp, lax.stop_gradient(-jnp.log(z[:, 0])) - jnp.inf)
    entropy = -total(jnp.sum(pi * log_pi, axis=-1))
    proxy = 1 - 2 * jnp.exp(logp) + total(jnp.sum(pi * pi, axis=-1))
    return TokenStats(*(jnp.where(present, stat, 0) for stat in (logp, entropy, proxy)))


def logits(hidden: Float[Array, "N D"], head: Head) -> Float[Array, "N V"]:
    """x = c·tanh((h·Wᵀ + b)/c)/τ in at least float32, padding included; `BANNED` or less if (h·Wᵀ + b)/τ is."""
    common, accumulator = dtypes(hidden, head.unembedding)
    h, w = hidden.astype(common), head.unembedding.astype(common)
    infinite = jnp.any(jnp.isinf(w), axis=-1)  # their logits are constants: no 0·∞ in the gradient of h
    z = jnp.einsum("nd,vd->nv", h, jnp.where(infinite[:, None], 0, w), preferred_element_type=accumulator)
    banned = jnp.einsum("nd,vd->nv", h, jnp.where(infinite[:, None], w, 0), preferred_element_type=accumulator)
    z = z + lax.stop_gradient(banned)
    if head.bias is not None:
        z = z + head.bias[None].astype(accumulator)
    x = z * head.beta
    if head.softcap is None:
        return x
    return jnp.where(x <= BANNED, x, head.softcap * jnp.tanh(z / head.softcap) * head.beta)
