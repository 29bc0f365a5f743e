"""The definition of token_kl: its equation on dense logits [N, V] of both policies."""

import jax.numpy as jnp
from jax import lax

from pallas_kernels._dispatch import promoted
from pallas_kernels._vocabulary.statistics import BANNED
from pallas_kernels._vocabulary.types import Head, dtypes
from pallas_kernels.token_stats.reference import logits


def token_kl(
    hidden, unembedding, ref_hidden, ref_unembedding, mask, *, temperature=1.0, softcap=(None, None), bias=(None, None)
):
    """Σ_v π(v) (log π(v) − log ρ(v)), with π and ρ the softmax of the policy's and the reference's logits.

    A term with π(v) = 0 is 0. If the reference bans a token with π(v) > 0, the sum is ∞, a constant.
    """
    accumulator = promoted(dtypes(hidden, unembedding)[1], dtypes(ref_hidden, ref_unembedding)[1])
    beta = lax.stop_gradient(1 / jnp.asarray(temperature, accumulator))

    def allowed_and_log_p(h, w, b, cap):
        own = dtypes(h, w)[1]
        cap = cap if cap is None else lax.stop_gradient(jnp.asarray(cap, own))
        x = logits(jnp.where(mask[:, None], h, 0), Head(w, b, beta.astype(own), cap, w.shape[0])).astype(accumulator)
        allowed = ~(x <= BANNED)  # true for NaN
        top = lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True, where=allowed, initial=BANNED))
        x = jnp.where(allowed, x - top, 0)
        total = jnp.sum(jnp.exp(x), axis=-1, keepdims=True, where=allowed)
        return allowed, x - jnp.log(jnp.where(total == 0, 1, total))

    may_be, log_pi = allowed_and_log_p(hidden, unembedding, bias[0], softcap[0])
    ref_may_be, log_rho = lax.stop_gradient(allowed_and_log_p(ref_hidden, ref_unembedding, bias[1], softcap[1]))
    pi = jnp.where(may_be, jnp.exp(log_pi), 0)
    kl = jnp.sum(pi * (log_pi - log_rho), axis=-1, where=may_be & ref_may_be)
    infinite = jnp.any((pi > 0) & ~ref_may_be, axis=-1)
    return jnp.where(mask, jnp.where(infinite, lax.stop_gradient(kl) + jnp.inf, kl), 0)
