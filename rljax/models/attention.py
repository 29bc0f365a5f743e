"""Rotary positions and grouped-query attention: functions of arrays."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int


def positions_of(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place of each token in its segment, from 0; padding shifts nothing.

    >>> positions_of(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))[0].tolist()
    [0, 1, 0, 1, 2, 0, 1]
    """
    t = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    first = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.where(jnp.pad(first, ((0, 0), (1, 0))), t, 0)
    return t - lax.cummax(starts, axis=1)


def causal_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """mask[t, s]: may t see s?  s ≤ t, in the same segment, and not padding (id 0)."""
    t = jnp.arange(segment_ids.shape[1])
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (t[:, None] >= t[None, :])[None] & same & (segment_ids != 0)[:, None, :]


def rotation(positions: Int[Array, "B T"], head_dim: int, base: float, dtype) -> tuple[Array, Array]:
    """cos and sin of position · base^(−2i / head_dim), each `[B, T, 1, head_dim / 2]`."""
    frequency = base ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle = positions[..., None, None].astype(dtype) * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: Float[Array, "B T H C"], cos: Float[Array, "B T 1 C/2"], sin: Float[Array, "B T 1 C/2"]) -> Array:
    """Turns the pair (x_i, x_{i + C/2}) by its angle, so that q·k depends on the difference of positions only."""
    a, b = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "B T H C"], k: Float[Array, "B S K C"], v: Float[Array, "B S K C"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B T H C"]:
    """softmax(q·kᵀ / √C) v over the keys that the mask allows; each of the K key heads serves H / K query heads.

    Logits and softmax are at least float32. A row that may see nothing gets a finite, meaningless average.
    """
    B, T, H, C = q.shape
    K = k.shape[2]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    grouped = q.reshape(B, T, K, H // K, C)
    logits = jnp.einsum("btkgc,bskc->bkgts", grouped, k, preferred_element_type=dtype) * C**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], logits, jnp.finfo(dtype).min), axis=-1)
    return jnp.einsum("bkgts,bskc->btkgc", weights.astype(v.dtype), v).reshape(B, T, H, C)
