"""token_stats as its equations say it, with the logits [N, V] in memory.  This is the definition."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.token_stats._types import TokenStats, dtypes


def token_stats(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
) -> TokenStats:
    """x = h·Wᵀ/τ;  log π = x − log Σ e^x;  logp = log π(y), entropy = − Σ π log π, proxy = 1 − 2π(y) + Σπ²."""
    common, accumulator = dtypes(hidden, unembedding)
    present = (targets >= 0) & (targets < unembedding.shape[0])
    h = jnp.where(present[:, None], hidden, jnp.zeros_like(hidden)).astype(common)
    y = jnp.where(present, targets, 0)
    tau = lax.stop_gradient(jnp.asarray(temperature, accumulator))

    x = jnp.einsum("nd,vd->nv", h, unembedding.astype(common), preferred_element_type=accumulator) / tau
    log_pi = jax.nn.log_softmax(x, axis=-1)
    pi = jnp.exp(log_pi)
    logp = jnp.take_along_axis(log_pi, y[:, None], axis=-1)[:, 0]
    entropy = -jnp.sum(pi * log_pi, axis=-1)
    proxy = 1 - 2 * jnp.exp(logp) + jnp.sum(pi * pi, axis=-1)
    return TokenStats(*(jnp.where(present, stat, 0) for stat in (logp, entropy, proxy)))
