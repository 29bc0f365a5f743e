"""The decoder-only transformer in Flax nnx, with RMSNorm, rotary positions, grouped-query attention and gated MLPs."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro
from flax import nnx
from jax import Array

from rljax._checks import check
from rljax.models.attention import accumulator, attend, last_keys
from rljax.models.decoder import DecoderConfig
from rljax.models.experts import Experts
from rljax.models.layers import GatedMLP, RMSNorm, constant, linear, weight
from rljax.models.rope import frequencies, rotate, rotation
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
    rope_scaling: Annotated[Callable | None, tyro.conf.Fixed] = None
    """Function of the rotary frequencies for longer contexts: a `LinearScaling` or `Llama3Scaling` of
    `rljax.models.rope`; None keeps the frequencies."""
    qkv_bias: bool = False
    """Add biases to queries, keys and values."""
    qk_norm: bool = False
    """Apply RMSNorm to queries and keys, over the features of each head, before they are rotated."""
    query_scale: float | None = None
    """Factor of the products of queries and keys; None means 1/√head_dim."""
    attention_softcap: float | None = None
    """Soft cap c of the attention logits z, which become c · tanh(z / c); None leaves them as they are."""
    local_layers: tuple[bool, ...] = ()
    """True for each layer with local attention, one entry per layer; empty if all layers are global."""
    window: int = 0
    """Number of tokens that a token attends to in local layers, including itself."""
    local_rope_base: float = 10000.0
    """Base of the rotary frequencies in local layers, to which `rope_scaling` does not apply."""
    activation: Annotated[Callable[[Array], Array], tyro.conf.Fixed] = jax.nn.silu
    """Activation of the gate in MLPs, such as `jax.nn.silu` (SwiGLU) or `rljax.models.layers.gelu_tanh` (GeGLU)."""
    experts: int = 0
    """Number of experts (MLPs) in each layer, of which a router chooses a few for each token; 0 means one plain MLP."""
    experts_per_token: int = 0
    """Number of experts chosen for each token."""
    expert_mlp: int = 0
    """Features inside each expert."""
    renormalize_experts: bool = True
    """Divide the probabilities of the chosen experts by their sum."""
    dense_layers: tuple[int, ...] = ()
    """Indices of the layers with a plain MLP instead of experts."""
    norm_eps: float = 1e-6
    """Constant added to the mean square in RMSNorm."""
    norm_shift: float = 0.0
    """Constant added to the scales of RMSNorm."""
    post_norm: bool = False
    """Also apply RMSNorm to the outputs of attention and MLP, before they are added to the residual stream."""
    embedding_scale: float = 1.0
    """Factor of the embeddings, rounded to the compute dtype."""
    remat: bool = False
    """Recompute each block in the backward pass, which trades computation for memory."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("width", "layers", "heads", "kv_heads", "head_dim", "mlp"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        check(self.heads % self.kv_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads = {self.heads}")
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number (rotary positions rotate pairs)")
        for name in ("rope_base", "local_rope_base", "norm_eps", "embedding_scale"):
            check(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")
        for name in ("query_scale", "attention_softcap"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, name, value, "None or a positive number")
        check(math.isfinite(self.norm_shift), "norm_shift", self.norm_shift, "a finite number")
        check(callable(self.activation), "activation", self.activation, "a function of an array")
        check(self.rope_scaling is None or callable(self.rope_scaling), "rope_scaling", self.rope_scaling,
              "None or a function of the frequencies, such as LinearScaling")  # fmt: skip
        self._check_local()
        self._check_experts()

    def _check_local(self):
        local = self.local_layers
        check(isinstance(local, tuple) and len(local) in (0, self.layers) and set(local) <= {True, False},
              "local_layers", local, f"() or a tuple of layers = {self.layers} booleans")  # fmt: skip
        if any(local):
            check(self.window >= 1, "window", self.window, "1 or more tokens, because local_layers has local layers")
        else:
            check(self.window == 0, "window", self.window, "0, because local_layers has no local layer")

    def _check_experts(self):
        check(self.experts >= 0, "experts", self.experts, "0 or more")
        if not self.experts:
            for name, empty in (("experts_per_token", 0), ("expert_mlp", 0), ("dense_layers", ())):
                check(getattr(self, name) == empty, name, getattr(self, name), f"{empty}, because experts = 0")
            return
        check(1 <= self.experts_per_token <= self.experts, "experts_per_token", self.experts_per_token,
              f"1 to experts = {self.experts}")  # fmt: skip
        check(self.expert_mlp >= 1, "expert_mlp", self.expert_mlp, "1 or more")
        dense = self.dense_layers
        check(isinstance(dense, tuple) and all(0 <= layer < self.layers for layer in dense), "dense_layers", dense,
              f"a tuple of indices below layers = {self.layers}")  # fmt: skip

    def network(self, rngs: nnx.Rngs, rules: ShardingRules) -> "Transformer":
        return Transformer(self, rngs, rules)


class Attention(nnx.Module):
    """Projection of softmax(q kᵀ · scale) v, where q and k are rotated by their positions."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        D, H, K, C = config.width, config.heads, config.kv_heads, config.head_dim
        self.query = weight(rngs, D**-0.5, embed=D, heads=H, head_dim=C)
        self.key = weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.value = weight(rngs, D**-0.5, embed=D, kv_heads=K, head_dim=C)
        self.out = weight(rngs, (2 * config.layers * H * C) ** -0.5, heads=H, head_dim=C, embed=D)
        if config.qkv_bias:
            self.query_bias = constant(0.0, heads=H, head_dim=C)
            self.key_bias, self.value_bias = (constant(0.0, kv_heads=K, head_dim=C) for _ in range(2))
        if config.qk_norm:
            self.query_norm, self.key_norm = (RMSNorm(C, config.norm_eps, config.norm_shift) for _ in range(2))
        self.config = config

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        q, k, v = (self._heads(x, kernel[...]) for kernel in (self.query, self.key, self.value))
        if self.config.qkv_bias:
            biases = (self.query_bias, self.key_bias, self.value_bias)
            q, k, v = (heads + bias[None, None].astype(x.dtype) for heads, bias in zip((q, k, v), biases, strict=True))
        if self.config.qk_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (heads.swapaxes(1, 2) for heads in (rotate(q, *turn), rotate(k, *turn), v))
        k, v = remember(k, v)
        mixed = attend(q, k, v, mask, self.config.query_scale, self.config.attention_softcap)
        mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], -1)
        return linear(mixed, self.out[...].reshape(-1, x.shape[-1])), (k, v)

    @staticmethod
    def _heads(x: Array, kernel: Array) -> Array:
        """[B, T, D] · [D, H, C] → [B, T, H, C]."""
        D, H, C = kernel.shape
        return linear(x, kernel.reshape(D, H * C)).reshape(*x.shape[:2], H, C)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with `post_norm`, the outputs are normalized before the sums."""

    def __init__(self, config: TransformerConfig, layer: int, rngs: nnx.Rngs, rules: ShardingRules):
        norm = partial(RMSNorm, config.width, config.norm_eps, config.norm_shift)
        self.attention_norm, self.attention = norm(), Attention(config, rngs)
        self.mlp_norm, self.mlp = norm(), _mlp(config, layer, rngs)
        if config.post_norm:
            self.attention_post_norm, self.mlp_post_norm = norm(), norm()
        self.post_norm, self.rules = config.post_norm, rules

    def __call__(self, x: Array, turn: tuple[Array, Array], mask: Array, remember: Callable) -> tuple[Array, tuple]:
        mixed, kept = self.attention(self.attention_norm(x), turn, mask, remember)
        x = split_rows(x + (self.attention_post_norm(mixed) if self.post_norm else mixed), self.rules)
        changed = self.mlp(self.mlp_norm(x))
        return split_rows(x + (self.mlp_post_norm(changed) if self.post_norm else changed), self.rules), kept


def _mlp(config: TransformerConfig, layer: int, rngs: nnx.Rngs) -> GatedMLP | Experts:
    D, dense = config.width, not config.experts or layer in config.dense_layers
    M = config.mlp if dense else config.expert_mlp
    std = (2 * config.layers * M) ** -0.5
    if dense:
        return GatedMLP(D, M, config.activation, std, rngs)
    return Experts(D, M, config.experts, config.experts_per_token, config.renormalize_experts, config.activation, std,
                   rngs)  # fmt: skip


class Transformer(nnx.Module):
    """Maps tokens to hidden states after the final norm."""

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs, rules: ShardingRules):
        self.config, self.rules = config, rules
        D, V = config.width, config.padded_vocab
        # Scale 1 matches the outputs of the blocks. A tied table starts at 0.02, because it also maps states to logits.
        self.embedding = weight(rngs, 0.02 if config.tied else 1.0, vocab=V, embed=D)
        self.blocks = nnx.List([Block(config, layer, rngs, rules) for layer in range(config.layers)])
        self.norm = RMSNorm(D, config.norm_eps, config.norm_shift)
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
        x = split_rows(
            self.embedding[...].astype(dtype)[tokens] * jnp.asarray(config.embedding_scale, dtype), self.rules
        )
        local = config.local_layers or (False,) * config.layers
        views = {kind: self._view(kind, positions, mask) for kind in set(local)}
        kept = []
        for layer, block in enumerate(self.blocks):
            x, memory = _run(block, config.remat)(x, *views[local[layer]], partial(remember, layer))
            kept.append(memory)
        return self.norm(x), tuple(kept)

    def _view(self, local: bool, positions: Array, mask: Array) -> tuple[tuple[Array, Array], Array]:
        """(cos and sin, mask) of the local or the global layers."""
        config = self.config
        theta = frequencies(config.local_rope_base if local else config.rope_base, config.head_dim)
        if config.rope_scaling is not None and not local:
            theta = config.rope_scaling(theta)
        turn = rotation(positions, theta, mask.shape[-1], accumulator(jnp.dtype(config.dtype)))  # positions < S
        return turn, last_keys(mask, config.window) if local else mask


def _run(block: Block, remat: bool) -> Callable:
    if not remat:
        return block
    definition, weights = nnx.split(block)

    def run(x, turn, mask, remember):
        again = jax.checkpoint(lambda w, x, turn, mask: nnx.merge(definition, w)(x, turn, mask, remember))
        return again(weights, x, turn, mask)

    return run
