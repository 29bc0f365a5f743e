"""token_kl as its equation says it, with the logits [N, V] of both policies in memory.  This is the definition."""

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels._vocabulary.types import dtypes


def token_kl(hidden, unembedding, ref_hidden, ref_unembedding, mask, *, temperature=1.0):
    """Σ_v π(v) (log π(v) − log ρ(v)) with π, ρ the softmax of h·Wᵀ/τ and of the reference's."""

    def log_softmax(h, w):
        common, accumulator = dtypes(h, w)
        h = jnp.where(mask[:, None], h, 0).astype(common)
        x = jnp.einsum("nd,vd->nv", h, w.astype(common), preferred_element_type=accumulator)
        return jax.nn.log_softmax(x / lax.stop_gradient(jnp.asarray(temperature, accumulator)), axis=-1)

    log_pi = log_softmax(hidden, unembedding)
    log_rho = lax.stop_gradient(log_softmax(ref_hidden, ref_unembedding)).astype(log_pi.dtype)
    return jnp.where(mask, jnp.sum(jnp.exp(log_pi) * (log_pi - log_rho), axis=-1), 0)
