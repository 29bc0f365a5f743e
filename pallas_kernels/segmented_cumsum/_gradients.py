"""Derivative rules of both scans. The gradients are scans too, computed by the same implementation `scan`."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.segmented_cumsum._monoids import MINIMUM, SUM

Scan = Callable[..., jax.Array]  # (operation, x, segment_ids, reverse, exclusive) -> y


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def cumsum(scan: Scan, x, segment_ids, reverse: bool, exclusive: bool):
    """y = M x, with M[t, s] = 1 if s ≤ t are in one sequence; ∂L/∂x = Mᵀ ∂L/∂y is the scan in the other direction."""
    return scan(SUM, x, segment_ids, reverse, exclusive)


def _cumsum_forward(scan, x, segment_ids, reverse, exclusive):
    return cumsum(scan, x, segment_ids, reverse, exclusive), segment_ids


def _cumsum_backward(scan, reverse, exclusive, segment_ids, cotangent):
    return cumsum(scan, cotangent, segment_ids, not reverse, exclusive), None


cumsum.defvjp(_cumsum_forward, _cumsum_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def cummin(scan: Scan, x, segment_ids, reverse: bool, exclusive: bool):
    """y_t = x_s with s the first position of the minimum, in scan order; ∂L/∂y_t goes to that x_s."""
    return scan(MINIMUM, x, segment_ids, reverse, exclusive)


def _cummin_forward(scan, x, segment_ids, reverse, exclusive):
    return cummin(scan, x, segment_ids, reverse, exclusive), (x, segment_ids)


def _cummin_backward(scan, reverse, exclusive, saved, cotangent):
    """∂L/∂x_s = Σ_t ∂L/∂y_t over tokens t from s, where the running minimum falls, to the token before its next fall.

    `falls` marks each such s, and `last_fall` is the rank of the last one up to each token. Tokens with an equal
    `last_fall` form a group; a segmented sum in the other direction adds the group's cotangents at s.
    """
    x, segment_ids = lax.stop_gradient(saved[0]), saved[1]
    trained, length = segment_ids.astype(jnp.bool_), x.shape[-1]
    ranks = jnp.arange(1, length + 1, dtype=x.dtype)  # positions in scan order; exact below 2²⁴ tokens
    rank = jnp.where(trained, jnp.broadcast_to(ranks[::-1] if reverse else ranks, x.shape), 0)
    falls = trained & (x < scan(MINIMUM, x, segment_ids, reverse, True))
    last_fall = -scan(MINIMUM, jnp.where(falls, -rank, jnp.inf), segment_ids, reverse, False)  # −∞: no fall yet
    if exclusive:  # y_t is the inclusive minimum one token earlier, so move each cotangent one token back
        following = scan(MINIMUM, rank, segment_ids, not reverse, True)
        exists = jnp.isfinite(following)
        place = jnp.where(exists, length - following if reverse else following - 1, 0).astype(jnp.int32)
        cotangent = jnp.where(exists, jnp.take_along_axis(cotangent, place, axis=-1), 0)
    groups = jnp.where(jnp.isfinite(last_fall), last_fall, 0).astype(jnp.int32)
    return jnp.where(falls, cumsum(scan, cotangent, groups, not reverse, False), 0), None


cummin.defvjp(_cummin_forward, _cummin_backward)
