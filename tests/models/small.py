"""A small transformer whose weights are large enough that every part affects the output."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from rljax.models import Decoder, MeshConfig, TransformerConfig, make_mesh
from rljax.models.layers import gelu_tanh
from rljax.models.rope import LinearScaling, Llama3Scaling

CONFIG = TransformerConfig(
    vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, max_length=24, rope_base=50.0
)
VARIANTS = {
    "plain": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied=True),
    "qk_norm": dataclasses.replace(CONFIG, qk_norm=True),
    "multi-head": dataclasses.replace(CONFIG, kv_heads=4),
    "remat": dataclasses.replace(CONFIG, remat=True),
    "llama3 and biases": dataclasses.replace(CONFIG, rope_scaling=Llama3Scaling(4.0, 0.1, 1.5, 10), qkv_bias=True),
    "gemma": dataclasses.replace(
        CONFIG,
        layers=3,
        tied=True,
        qk_norm=True,
        norm_shift=1.0,
        post_norm=True,
        embedding_scale=4.0,
        query_scale=0.7,
        activation=gelu_tanh,
        attention_softcap=2.0,
        softcap=3.0,
        local_layers=(True, False, True),
        window=3,
        local_rope_base=7.0,
        rope_scaling=LinearScaling(3.0),
    ),
    "experts": dataclasses.replace(CONFIG, qk_norm=True, experts=4, experts_per_token=2, expert_mlp=6),
    "experts without renormalization": dataclasses.replace(
        CONFIG, experts=4, experts_per_token=3, expert_mlp=6, renormalize_experts=False, dense_layers=(1,)
    ),
}
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def mesh_of(sizes):
    """A mesh over the first simulated devices; unnamed axes have size 1."""
    return make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])


@functools.cache
def make(config=CONFIG, seed=0) -> tuple[Decoder, dict]:
    """A model with parameters of order 1: nonuniform distributions and norm scales other than 1."""
    model, rng = Decoder(config), np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: model.initialize(jax.random.key(0)))
    return model, jax.tree.map(lambda x: jnp.float32(0.5 * rng.normal(size=x.shape) + (x.ndim == 1)), shapes)


hidden_of = jax.jit(Decoder.hidden, static_argnums=0)


def packed_rows():
    """Two rows [2, 12] of packed sequences with padding on the left, between sequences and on the right."""
    segment_ids = np.int32([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 0, 2, 2, 2, 0, 0]])
    return some_tokens(segment_ids.shape), segment_ids


def some_tokens(shape, seed=7):
    return np.random.default_rng(seed).integers(2, CONFIG.vocab_size, shape, np.int32)


@functools.partial(jax.jit, static_argnums=0)
def log_softmax_at(model, params, tokens, segment_ids, temperature=1.0):
    """log π(tokens[t] | tokens[<t]) [B, T] from the full forward pass; column 0 is 0."""
    hidden = model.hidden(params, tokens, segment_ids)
    logits = jnp.einsum("btd,vd->btv", hidden, model.unembedding(params), preferred_element_type=jnp.float32)
    if cap := model.config.softcap:
        logits = cap * jnp.tanh(logits / cap)
    log_pi = jax.nn.log_softmax(logits[:, :-1] / temperature, axis=-1)
    return jnp.pad(jnp.take_along_axis(log_pi, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))
