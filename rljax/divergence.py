"""Divergences of two policies from what is known of a few tokens at each position: what trust regions are made of."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import accumulators, require_shape

__all__ = ["total_variation"]


def total_variation(logp: Float[Array, "*B K"], old_logp: Float[Array, "*B K"]) -> Float[Array, "*B"]:
    """The total variation of two policies over K tokens and the rest taken as one (CPPO, 2606.10968). No gradient.

        D = ½ (Σ_v |p_v − q_v| + |Σ_v (p_v − q_v)|)

    p = e^logp and q = e^old_logp at the same K tokens, the old policy's likeliest; in [0, 1], and a lower bound of the
    total variation over the whole vocabulary. ValueError where shapes differ.

    >>> round(float(total_variation(jnp.log(jnp.array([0.5, 0.1])), jnp.log(jnp.array([0.3, 0.2])))), 6)
    0.2
    """
    logp, old_logp = accumulators(logp=logp, old_logp=old_logp)
    require_shape(jnp.shape(old_logp), "old_logp", logp=logp)
    moved = jnp.exp(logp) - jnp.exp(old_logp)
    return lax.stop_gradient(0.5 * (jnp.sum(jnp.abs(moved), axis=-1) + jnp.abs(jnp.sum(moved, axis=-1))))
