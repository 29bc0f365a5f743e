"""Names and layouts of the tensors in a checkpoint, for each parameter of the transformer."""

import math
import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np


class Prefixes(NamedTuple):
    """Beginnings of tensor names in a checkpoint: the text model, and the unembedding table in full."""

    body: str
    head: str


TEXT = Prefixes("model.", "lm_head.weight")
PREFIXES = (
    TEXT,
    Prefixes("language_model.model.", "language_model.lm_head.weight"),  # multimodal
    Prefixes("model.language_model.", "lm_head.weight"),  # multimodal, as older versions of transformers wrote it
)
EMBEDDING = "embed_tokens.weight"

_BUFFERS = re.compile(r".*\.rotary_emb\.inv_freq")  # written by old versions of transformers, computed from rope_theta
_IMAGES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")

# Name of a tensor, and the number of leading axes of the parameter that a linear map reads (see `Weight`).
_BLOCK = {
    "attention_norm.scale": ("input_layernorm.weight", 0),
    "attention.query": ("self_attn.q_proj.weight", 1),
    "attention.key": ("self_attn.k_proj.weight", 1),
    "attention.value": ("self_attn.v_proj.weight", 1),
    "attention.out": ("self_attn.o_proj.weight", 2),
    "attention.query_bias": ("self_attn.q_proj.bias", 0),
    "attention.key_bias": ("self_attn.k_proj.bias", 0),
    "attention.value_bias": ("self_attn.v_proj.bias", 0),
    "attention.query_norm.scale": ("self_attn.q_norm.weight", 0),
    "attention.key_norm.scale": ("self_attn.k_norm.weight", 0),
    "mlp_norm.scale": ("post_attention_layernorm.weight", 0),
    "mlp.gate": ("mlp.gate_proj.weight", 1),
    "mlp.up": ("mlp.up_proj.weight", 1),
    "mlp.down": ("mlp.down_proj.weight", 1),
    "mlp.router": ("mlp.gate.weight", 1),
}
_EXPERTS = {
    "mlp.gate": ("mlp.experts.{}.gate_proj.weight", 1),
    "mlp.up": ("mlp.experts.{}.up_proj.weight", 1),
    "mlp.down": ("mlp.experts.{}.down_proj.weight", 1),
}
_POST_NORM = {
    "attention_post_norm.scale": ("post_attention_layernorm.weight", 0),
    "mlp_norm.scale": ("pre_feedforward_layernorm.weight", 0),
    "mlp_post_norm.scale": ("post_feedforward_layernorm.weight", 0),
}


class Weight(NamedTuple):
    """The tensors that hold a parameter.

    A linear map is a matrix [outputs, inputs] in a checkpoint, and has the axes [*inputs, *outputs] as a parameter.
    """

    names: tuple[str, ...]
    """The tensor, or one tensor per expert: the first axis of the parameter."""
    sizes: tuple[int, ...]
    """Axes of the parameter (of one expert) without padding rows."""
    order: tuple[int, ...]
    """Axes of the parameter in the order in which the tensor stores them."""
    shape: tuple[int, ...]
    """Shape of each tensor."""
    stacked: bool
    """True if the parameter has an axis of experts."""

    def from_tensor(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape([self.sizes[i] for i in self.order]).transpose(np.argsort(self.order))

    def to_tensor(self, values: np.ndarray) -> np.ndarray:
        return values.transpose(self.order).reshape(self.shape)


def prefixes(tensors: Collection[str]) -> Prefixes:
    """The convention by which a checkpoint names its tensors."""
    return next((prefix for prefix in PREFIXES if prefix.body + EMBEDDING in tensors), TEXT)


def is_apart(name: str, prefix: Prefixes) -> bool:
    """True if a tensor is not part of the text model: images in a multimodal checkpoint, and buffers."""
    return bool(_BUFFERS.fullmatch(name) or (prefix != TEXT and _IMAGES.fullmatch(name)))


def weights(vocab_size: int, params: Mapping, prefix: Prefixes) -> dict[str, Weight]:
    """The weight of each parameter of the policy, by its path such as `blocks.0.attention.query`."""
    shapes = {path: x.shape for path, x in leaves(params).items() if path not in ("value", "value_bias")}
    names = _BLOCK | (_POST_NORM if any(path.endswith("post_norm.scale") for path in shapes) else {})
    return {path: _weight(path, shape, names, vocab_size, prefix) for path, shape in shapes.items()}


def leaves(params: Mapping) -> dict:
    """The leaves of nested dicts by their paths."""
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in jax.tree.leaves_with_path(params)}


def _weight(path: str, shape: tuple[int, ...], names: Mapping, V: int, prefix: Prefixes) -> Weight:
    if path in ("embedding", "unembedding"):
        name = prefix.head if path == "unembedding" else prefix.body + EMBEDDING
        return Weight((name,), (V, shape[1]), (0, 1), (V, shape[1]), False)
    if path == "norm.scale":
        return _linear((prefix.body + "norm.weight",), shape, 0, False)
    layer, _, rest = path.removeprefix("blocks.").partition(".")
    stacked = len(shape) == 3 and rest.startswith("mlp.")
    name, inputs = _EXPERTS[rest] if stacked else names[rest]
    name = f"{prefix.body}layers.{layer}.{name}"
    tensors = tuple(name.format(expert) for expert in range(shape[0])) if stacked else (name,)
    return _linear(tensors, shape[stacked:], inputs, stacked)


def _linear(names: tuple[str, ...], sizes: tuple[int, ...], inputs: int, stacked: bool) -> Weight:
    order = (*range(inputs, len(sizes)), *range(inputs))
    groups = [sizes[inputs:], sizes[:inputs]] if inputs else [sizes]
    return Weight(names, sizes, order, tuple(math.prod(group) for group in groups), stacked)
