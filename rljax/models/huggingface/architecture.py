"""The architecture in transformers that equals the settings of a transformer, as a `config.json`."""

import dataclasses
import math
from typing import Any

from rljax.models.huggingface.config import ACTIVATIONS, FAMILIES, GLOBAL, LOCAL, transformer
from rljax.models.rope import LinearScaling, Llama3Scaling
from rljax.models.transformer import TransformerConfig

_FREE = ("max_length", "value_head", "dtype", "param_dtype", "remat")  # settings that a config.json does not fix


def describe(config: TransformerConfig) -> dict[str, Any]:
    """The config.json of a model in transformers that computes the same as `config`.

    Raises ValueError if no architecture computes the same; the message names an option that differs.
    """
    name = _nearest(config)
    values = {
        "architectures": [name],
        "model_type": FAMILIES[name].model_type,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        ("hidden_activation" if name == "Gemma3ForCausalLM" else "hidden_act"): _activation(config),
    } | _sizes(config)
    if name == "Gemma3ForCausalLM":
        values |= _gemma3(config)
    if name == "Qwen3MoeForCausalLM":
        values |= _qwen3_moe(config)
    if name == "MistralForCausalLM":
        values["sliding_window"] = None
    for option, other in differences(config, transformer(values)).items():
        raise ValueError(f"model: {option} = {getattr(config, option)!r}: expected {other!r}, since the nearest "
                         f"architecture in transformers is {name}")  # fmt: skip
    return values


def differences(config: TransformerConfig, other: TransformerConfig) -> dict[str, Any]:
    """The options in which the models differ, with their values in `other`."""
    mine, theirs = _normal(config), _normal(other)
    return {option: theirs[option] for option in mine if not _equal(mine[option], theirs[option])}


def _normal(config: TransformerConfig) -> dict[str, Any]:
    """The options that change the outputs; equal models have equal options."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    options["query_scale"] = config.query_scale or config.head_dim**-0.5
    options["local_rope_base"] = config.local_rope_base if any(config.local_layers) else 0.0
    options["local_layers"] = config.local_layers if any(config.local_layers) else ()
    options["dense_layers"] = tuple(sorted(config.dense_layers))
    return {option: value for option, value in options.items() if option not in _FREE}


def _equal(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12)
    return a == b


def _nearest(config: TransformerConfig) -> str:
    if config.post_norm or config.norm_shift:
        return "Gemma3ForCausalLM"
    if config.experts:
        return "Qwen3MoeForCausalLM"
    if config.qk_norm:
        return "Qwen3ForCausalLM"
    if config.qkv_bias:
        return "Qwen2ForCausalLM"
    # Mistral without a window has the form of Llama, for which transformers wants heads that divide the width.
    return "MistralForCausalLM" if config.width % config.heads else "LlamaForCausalLM"


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _scaling(config),
    }


def _activation(config: TransformerConfig) -> str:
    return next((name for name, function in ACTIVATIONS.items() if function == config.activation), "silu")


def _scaling(config: TransformerConfig) -> dict[str, Any] | None:
    match config.rope_scaling:
        case LinearScaling() as scaling:
            return {"rope_type": "linear"} | dataclasses.asdict(scaling)
        case Llama3Scaling() as scaling:
            return {"rope_type": "llama3"} | dataclasses.asdict(scaling)
    return None


def _qwen3_moe(config: TransformerConfig) -> dict[str, Any]:
    return {
        "num_experts": config.experts,
        "num_experts_per_tok": config.experts_per_token,
        "moe_intermediate_size": config.expert_mlp,
        "norm_topk_prob": config.renormalize_experts,
        "mlp_only_layers": sorted(config.dense_layers),
        "decoder_sparse_step": 1,
    }


def _gemma3(config: TransformerConfig) -> dict[str, Any]:
    local = config.local_layers or (False,) * config.layers
    values = {
        "query_pre_attn_scalar": round((config.query_scale or config.head_dim**-0.5) ** -2),
        "layer_types": [LOCAL if is_local else GLOBAL for is_local in local],
        "rope_local_base_freq": config.local_rope_base,
        "final_logit_softcapping": config.softcap,
    }
    return values | ({"sliding_window": config.window} if any(local) else {})
