"""Divergences of two policies, computed from a few tokens per position, for the trust regions of `ratio`."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import accumulators, require_shape

__all__ = ["total_variation"]


def total_variation(logp: Float[Array, "*B K"], old_logp: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """The total variation of two policies over K tokens, with all other tokens merged into one (CPPO, 2606.10968).

        D = ½ (Σ_v |p_v − q_v| + |Σ_v (p_v − q_v)|),    p = e^logp,    q = e^old_logp

    `logp` and `old_logp` [..., K] are the log-probabilities, in nats, of the old policy's K most likely tokens. Returns
    D, [...], in [0, 1], without gradient, for `ratio.cumulative_divergence_mask`. D is at most the total variation over
    the vocabulary; `ratio.total_variation_mask` uses the sampled token only. Raises ValueError if shapes differ.

    >>> round(float(total_variation(jnp.log(jnp.array([0.5, 0.1])), jnp.log(jnp.array([0.3, 0.2])))), 6)
    0.2
    """
    logp, old_logp = accumulators(logp=logp, old_logp=old_logp)
    require_shape(jnp.shape(old_logp), "old_logp", logp=logp)
    moved = jnp.exp(logp) - jnp.exp(old_logp)
    return lax.stop_gradient(0.5 * (jnp.sum(jnp.abs(moved), axis=-1) + jnp.abs(jnp.sum(moved, axis=-1))))
