"""The decoder-only transformer in Flax nnx, with RMSNorm, rotary positions, grouped-query attention and SwiGLU."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from rljax._checks import check
from rljax.models.attention import accumulator, attend, rotate, rotation
from rljax.models.decoder import DecoderConfig
from rljax.models.layers import RMSNorm, SwiGLU, constant, linear, weight
from rljax.models.sharding import ShardingRules, split_rows


@dataclasses.dataclass(frozen=True)
class TransformerConfig(DecoderConfig):
    """Sizes and options of the decoder-only transformer, in addition to those of `DecoderConfig`.

    The defaults give a small model for CPUs. Raises ValueError if a field is out of range.

    >>> TransformerConfig(heads=6, kv_heads=4)
    Traceback (most recent call last):
        ...
    ValueError: kv_heads = 4: expected a divisor of heads = 6
    """

    width: int = 128
    """Features of the residual stream (D)."""
    layers: int = 3
    """Number of blocks, each with attention and an MLP."""
    heads: int = 4
    """Number of query heads."""
    kv_heads: int = 4
    """Number of key and value heads, each shared by heads / kv_heads query heads."""
    head_dim: int = 32
    """Features per head. Must be even, because rotary positions rotate pairs of features."""
    mlp: int = 344
    """Features inside the gated MLP. Its 3 matrices at 8/3 · width are as large as a plain MLP's 2 at 4 · width."""
    rope_base: float = 100.0
    """Base of the rotary frequencies. Longer contexts need a larger base (10,000 for thousands of tokens)."""
    qk_norm: bool = False
    """Apply RMSNorm to queries and keys, over the features of each head."""
    norm_eps: float = 1e-6
    """Constant added to the mean square in RMSNorm."""
    remat: bool = False
    """Recompute each block in the backward pass, which trades computation for memory."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number (rotary positions rotate pairs)")
        for name in ("rope_base", "norm_eps"):
            check(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")

    def network(self, rngs: nnx.Rngs, rules: ShardingRules) -> "Transformer":
        return Transformer(self, rngs, rules)


class Attention(nnx.Module):
    """Projection of softmax(q kᵀ / √C) v, where q and k are rotated by their positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        D, H, K, C = config.width, config.heads, config.kv_heads, config.head_dim
        self.query = weight(rngs, D**-0.5, embed=D, heads=H, head_dim=C)
        self.key = weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.value = weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.out = weight(rngs, (2 * config.layers * H * C) ** -0.5, heads=H, head_dim=C, embed=D)
        if config.qk_norm:
            self.query_norm, self.key_norm = RMSNorm(C, config.norm_eps), RMSNorm(C, config.norm_eps)
        self.qk_norm = config.qk_norm

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        q, k, v = (self._heads(x, kernel[...]) for kernel in (self.query, self.key, self.value))
        if self.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (heads.swapaxes(1, 2) for heads in (rotate(q, *turn), rotate(k, *turn), v))
        k, v = remember(k, v)
        mixed = attend(q, k, v, mask).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return linear(mixed, self.out[...].reshape(-1, x.shape[-1])), (k, v)

    @staticmethod
    def _heads(x: Array, kernel: Array) -> Array:
        """[B, T, D] · [D, H, C] → [B, T, H, C]."""
        D, H, C = kernel.shape
        return linear(x, kernel.reshape(D, H * C)).reshape(*x.shape[:2], H, C)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, rules: ShardingRules):
        self.attention_norm, self.attention = RMSNorm(config.width, config.norm_eps), Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp, config.layers, rngs)
        self.rules = rules

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        mixed, kept = self.attention(self.attention_norm(x), turn, mask, remember)
        x = split_rows(x + mixed, self.rules)
        return split_rows(x + self.mlp(self.mlp_norm(x)), self.rules), kept


class Transformer(nnx.Module):
    """Maps tokens to hidden states after the final norm."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, rules: ShardingRules):
        self.config, self.rules = config, rules
        D, V = config.width, config.padded_vocab
        # Scale 1 matches the outputs of the blocks. A tied table starts at 0.02, because it also maps states to logits.
        self.embedding = weight(rngs, 0.02 if config.tied else 1.0, vocab=V, embed=D)
        self.blocks = nnx.List([Block(config, rngs, rules) for _ in range(config.layers)])
        self.norm = RMSNorm(D, config.norm_eps)
        if not config.tied:
            self.unembedding = weight(rngs, 0.02, vocab=V, embed=D)
        if config.value_head:
            self.value, self.value_bias = constant(0.0, embed=D), constant(0.0)

    def __call__(self, tokens: Array, positions: Array, mask: Array, remember: Callable) -> tuple[Array, tuple]:
        """Returns hidden states [B, T, D] of tokens [B, T], and the keys and values that each block attended to.

        mask [B, T, S] is True for the keys that a token may attend to. `remember(layer, k, v)` maps the keys and values
        of these tokens to the S keys and values to attend to: (k, v) in training, an extended cache in decoding.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = split_rows(self.embedding[...].astype(dtype)[tokens], self.rules)
        sizes = {"head_dim": config.head_dim, "base": config.rope_base, "max_length": config.max_length}
        turn = rotation(positions, accumulator(dtype), **sizes)
        kept = []
        for layer, block in enumerate(self.blocks):
            x, memory = _run(block, config.remat)(x, turn, mask, partial(remember, layer))
            kept.append(memory)
        return self.norm(x), tuple(kept)


def _run(block: Block, remat: bool) -> Callable:
    if not remat:
        return block
    definition, weights = nnx.split(block)

    def run(x, turn, mask, remember):
        again = jax.checkpoint(lambda w, x, turn, mask: nnx.merge(definition, w)(x, turn, mask, remember))
        return again(weights, x, turn, mask)

    return run
