"""A transformer small enough to check by hand, with weights large enough that every part of it shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from rljax.models import Model, TransformerConfig

CONFIG = TransformerConfig(
    vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, head_dim=4, mlp=24, max_length=24, rope_base=50.0
)
VARIANTS = {
    "plain": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied=True),
    "qk_norm": dataclasses.replace(CONFIG, qk_norm=True),
    "multi-head": dataclasses.replace(CONFIG, kv_heads=4),
    "remat": dataclasses.replace(CONFIG, remat=True),
}
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


def make_mesh(shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def make(config=CONFIG, seed=0) -> tuple[Model, dict]:
    """A model and parameters of size about 1: distributions far from uniform, norm scales that are not 1."""
    model = Model(config)
    leaves, tree = jax.tree.flatten(model.initialise(jax.random.key(seed)))
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [0.5 * jax.random.normal(k, x.shape) + float(x.ndim == 1) for k, x in zip(keys, leaves, strict=True)]
    return model, jax.tree.unflatten(tree, noisy)


def packed_rows():
    """Two rows [2, 12] of packed sequences, with padding on the left, in between, and on the right."""
    segment_ids = jnp.array([[0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1, 0, 2, 2, 2, 0, 0]], jnp.int32)
    return jax.random.randint(jax.random.key(7), segment_ids.shape, 2, 11), segment_ids


def log_softmax_at(model, params, tokens, segment_ids, temperature=1.0):
    """log π(tokens[t] | tokens[<t]) [B, T] from the full forward pass; column 0 is 0."""
    hidden = jax.jit(model.hidden)(params, tokens, segment_ids)
    logits = jnp.einsum("btd,vd->btv", hidden, model.unembedding(params), preferred_element_type=jnp.float32)
    log_pi = jax.nn.log_softmax(logits[:, :-1] / temperature, axis=-1)
    return jnp.pad(jnp.take_along_axis(log_pi, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))
