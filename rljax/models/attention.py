"""Masks and grouped-query attention as functions of arrays."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

QUERIES = 256  # queries per block; only the attention weights of one block, [B, H, QUERIES, S], exist at a time


def accumulator(dtype) -> jnp.dtype:
    """Dtype of sums and angles: float64 for float64 inputs, else float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def positions_of(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token in its segment, counted from 0.

    >>> positions_of(jnp.array([[0, 0, 1, 1, 1, 2, 2]]))[0].tolist()
    [0, 1, 0, 1, 2, 0, 1]
    """
    t = lax.broadcasted_iota(jnp.int32, segment_ids.shape, 1)
    first = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = jnp.where(jnp.pad(first, ((0, 0), (1, 0))), t, 0)
    return t - lax.cummax(starts, axis=1)


def causal_mask(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """mask[t, s]: True if token t may attend to token s, i.e. s ≤ t, same segment, and s is not padding (id 0)."""
    t = jnp.arange(segment_ids.shape[1])
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (t[:, None] >= t[None, :])[None] & same & (segment_ids != 0)[:, None, :]


def last_keys(mask: Bool[Array, "B T S"], window: int) -> Bool[Array, "B T S"]:
    """The mask of keys, restricted for each token to the last `window` key slots, of which the last is its own.

    >>> last_keys(jnp.array([[[False, True, True, True, False]]]), 2)[0, 0].tolist()
    [False, False, True, True, False]
    """
    s = lax.broadcasted_iota(jnp.int32, mask.shape, 2)
    own = jnp.max(jnp.where(mask, s, 0), axis=-1, keepdims=True)
    return mask & (s > own - window)


def softcapped(x: Array, cap: float | None) -> Array:
    """cap · tanh(x / cap), or x if `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: Float[Array, "B H T C"],
    k: Float[Array, "B K S C"],
    v: Float[Array, "B K S C"],
    mask: Bool[Array, "B T S"],
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B H T C"]:
    """softmax(q·kᵀ · scale) v over the keys that the mask allows; each of the K key heads serves H / K query heads.

    `scale` is 1/√C if None. The scaled logits are soft-capped (`softcapped`) before the mask is applied.
    Logits and softmax use at least float32. A query whose mask is all False gets a finite but meaningless average.
    More than QUERIES queries are processed in blocks, and the backward pass recomputes the weights of each block.
    """
    T = q.shape[2]
    blocks = -(-T // QUERIES)
    if blocks <= 1:
        return _attend(q, k, v, mask, scale, softcap)
    rows = -(-T // blocks)
    short = blocks * rows - T
    q = jnp.pad(q, ((0, 0), (0, 0), (0, short), (0, 0)))
    mask = jnp.pad(mask, ((0, 0), (0, short), (0, 0)))
    # Cast outside the loop, so that the gradients of keys and values are summed over blocks in the wide dtype.
    wide_k, wide_v = (x.astype(accumulator(x.dtype)) for x in (k, v))

    @jax.checkpoint
    def of_block(block):
        q, mask = block
        return _attend(q, wide_k.astype(k.dtype), wide_v.astype(v.dtype), mask, scale, softcap)

    out = lax.map(of_block, (_split(q, 2, blocks), _split(mask, 1, blocks)))
    return jnp.moveaxis(out, 0, 2).reshape(q.shape)[:, :, :T]


def _split(x: Array, axis: int, blocks: int) -> Array:
    """Reshapes [..., blocks·n, ...] to [blocks, ..., n, ...]."""
    return jnp.moveaxis(x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :]), axis, 0)


def _attend(q: Array, k: Array, v: Array, mask: Array, scale: float | None, softcap: float | None) -> Array:
    (B, H, T, C), (K, S) = q.shape, k.shape[1:3]
    dtype = accumulator(q.dtype)
    logits = jnp.einsum("bkqc,bksc->bkqs", q.reshape(B, K, -1, C), k, preferred_element_type=dtype)
    logits = softcapped(logits * (C**-0.5 if scale is None else scale), softcap)
    logits = jnp.where(mask[:, None], logits.reshape(B, H, T, S), jnp.finfo(dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype).reshape(B, K, -1, S)
    return jnp.einsum("bkqs,bksc->bkqc", weights, v).reshape(B, H, T, C)
