"""Language models as pure functions of a pytree of parameters."""

from rljax.models.decoder import Cache, Decoder, DecoderConfig, create
from rljax.models.huggingface.load import load
from rljax.models.huggingface.pretrained import PretrainedModel
from rljax.models.huggingface.save import save
from rljax.models.protocol import Head, Model, ModelConfig, Params, PromptSharing, initialize, without_value_head
from rljax.models.sharding import MeshConfig, ShardingRules, make_mesh
from rljax.models.transformer import TransformerConfig

__all__ = [
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Head",
    "MeshConfig",
    "Model",
    "ModelConfig",
    "Params",
    "PretrainedModel",
    "PromptSharing",
    "ShardingRules",
    "TransformerConfig",
    "create",
    "initialize",
    "load",
    "make_mesh",
    "save",
    "without_value_head",
]
