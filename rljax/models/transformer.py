"""The decoder-only transformer in Flax nnx: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rljax.models.attention import accumulator, attend, rotate, rotation
from rljax.models.config import TransformerConfig
from rljax.models.sharding import split_rows


def _weight(rngs: nnx.Rngs, std: float, **axes: int) -> nnx.Param:
    """A float32 parameter ~ N(0, std²) with named logical axes; sharding.py maps them to the mesh."""
    value = std * jax.random.normal(rngs.params(), tuple(axes.values()), jnp.float32)
    return nnx.Param(value, out_sharding=tuple(axes), eager_sharding=False)


def _linear(x: Array, weight: Array) -> Array:
    """x · W over the last axis of x, in its dtype. Rows are flattened: XLA's backward pass on CPUs then takes half."""
    return (x.reshape(-1, x.shape[-1]) @ weight.astype(x.dtype)).reshape(*x.shape[:-1], weight.shape[-1])


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) · scale over the last axis, in at least float32."""

    def __init__(self, size: int, config: TransformerConfig):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32), out_sharding=("layer_norm",), eager_sharding=False)
        self.eps = config.norm_eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(accumulator(x.dtype))
        unit = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        scale = jnp.expand_dims(self.scale[...].astype(wide.dtype), range(x.ndim - 1))
        return (unit * scale).astype(x.dtype)


class Attention(nnx.Module):
    """o = softmax(q kᵀ / √C) v, projected back; q and k are turned by their positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        D, H, K, C = config.width, config.heads, config.kv_heads, config.head_dim
        self.query = _weight(rngs, D**-0.5, embed=D, heads=H, head_dim=C)
        self.key = _weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.value = _weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.out = _weight(rngs, (2 * config.layers * H * C) ** -0.5, heads=H, head_dim=C, embed=D)
        if config.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(C, config), RMSNorm(C, config)
        self.qk_norm = config.qk_norm

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        q, k, v = (self._heads(x, weight[...]) for weight in (self.query, self.key, self.value))
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (heads.swapaxes(1, 2) for heads in (rotate(q, *turn), rotate(k, *turn), v))
        k, v = remember(k, v)
        mixed = attend(q, k, v, mask).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return _linear(mixed, self.out[...].reshape(-1, x.shape[-1])), (k, v)

    @staticmethod
    def _heads(x: Array, weight: Array) -> Array:
        """[B, T, D] · [D, H, C] as [B, T, H, C]."""
        D, H, C = weight.shape
        return _linear(x, weight.reshape(D, H * C)).reshape(*x.shape[:2], H, C)


class SwiGLU(nnx.Module):
    """W_down (silu(W_gate x) · W_up x)."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        D, M = config.width, config.mlp
        self.gate = _weight(rngs, D**-0.5, embed=D, mlp=M)
        self.up = _weight(rngs, D**-0.5, embed=D, mlp=M)
        self.down = _weight(rngs, (2 * config.layers * M) ** -0.5, mlp=M, embed=D)

    def __call__(self, x: Array) -> Array:
        return _linear(jax.nn.silu(_linear(x, self.gate[...])) * _linear(x, self.up[...]), self.down[...])


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.attention_norm, self.attention = RMSNorm(config.width, config), Attention(config, rngs)
        self.mlp_norm, self.mlp = RMSNorm(config.width, config), SwiGLU(config, rngs)

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        mixed, kept = self.attention(self.attention_norm(x), turn, mask, remember)
        x = split_rows(x + mixed)
        return split_rows(x + self.mlp(self.mlp_norm(x))), kept


class Transformer(nnx.Module):
    """Tokens to hidden states after the final norm; the table `unembedding` (or `embedding`, if tied) reads them."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        self.config = config
        D, V = config.width, config.padded_vocab
        # As large as what the blocks add to it: at 0.02 they drown the tokens, and copying is learned late. A tied
        # table also reads hidden states of unit scale, so it starts small.
        self.embedding = _weight(rngs, 0.02 if config.tied else 1.0, vocab=V, embed=D)
        self.blocks = nnx.List([Block(config, rngs) for _ in range(config.layers)])
        self.norm = RMSNorm(D, config)
        if not config.tied:
            self.unembedding = _weight(rngs, 0.02, vocab=V, embed=D)
        if config.value_head:  # values start at 0
            self.value = nnx.Param(jnp.zeros(D, jnp.float32), out_sharding=("embed",), eager_sharding=False)
            self.value_bias = nnx.Param(jnp.zeros((), jnp.float32), out_sharding=(), eager_sharding=False)

    def __call__(self, tokens: Array, positions: Array, mask: Array, remember: Callable) -> tuple[Array, tuple]:
        """Hidden states [B, T, D] of tokens [B, T], and what each block remembered.

        mask [B, T, S] says which of the S remembered keys each token may see; `remember(layer, k, v)` maps the keys and
        values of these tokens to those that are attended to: the identity in training, a cache in decoding.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = split_rows(self.embedding[...].astype(dtype)[tokens])
        turn = rotation(positions, config, accumulator(dtype))
        kept = []
        for layer, block in enumerate(self.blocks):
            x, memory = _run(block, config.remat)(x, turn, mask, partial(remember, layer))
            kept.append(memory)
        return self.norm(x), tuple(kept)


def _run(block: Block, remat: bool) -> Callable:
    """The block, or the block recomputed in the backward pass."""
    if not remat:
        return block
    definition, weights = nnx.split(block)

    def run(x, turn, mask, remember):
        again = jax.checkpoint(lambda w, x, turn, mask: nnx.merge(definition, w)(x, turn, mask, remember))
        return again(weights, x, turn, mask)

    return run
