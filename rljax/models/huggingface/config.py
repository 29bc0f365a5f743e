"""Transformer settings read from the `config.json` of a Hugging Face folder."""

import json
import math
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax

from rljax._folders import read_json, shown
from rljax.models.layers import gelu_tanh
from rljax.models.rope import LinearScaling, Llama3Scaling
from rljax.models.transformer import TransformerConfig

Ignore = Collection[str] | None

ACTIVATIONS = {"silu": jax.nn.silu, "gelu_pytorch_tanh": gelu_tanh}
LOCAL, GLOBAL = "sliding_attention", "full_attention"

# Keys that do not change the logits: metadata, token ids, initialization, options of training and of `generate`.
_HARMLESS = frozenset({
    "architectures", "model_type", "auto_map", "transformers_version", "_name_or_path", "torch_dtype", "dtype",
    "use_cache", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id",
    "cls_token_id", "decoder_start_token_id", "is_llama_config", "transformers.js_config", "unsloth_version",
    "unsloth_fixed", "cache_implementation", "_attn_implementation_autoset", "router_aux_loss_coef", "id2label",
    "label2id", "return_dict", "chunk_size_feed_forward", "max_length", "min_length", "num_beams", "num_beam_groups",
    "num_return_sequences", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
    "diversity_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "do_sample", "early_stopping",
    "tokenizer_class", "output_router_logits", "_flash_attn_2_enabled",
})  # fmt: skip

# Harmless with these values.
_DEFAULT = {"attention_dropout": 0, "pretraining_tp": 1, "partial_rotary_factor": 1, "pruned_heads": {}}

# More than in any published model; a larger number would take minutes or all memory before the tensors are compared.
_MOST_LAYERS, _MOST_EXPERTS = 256, 1024

# The outer keys of a multimodal config, which describe images.
_IMAGES = frozenset({
    "vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index", "boi_token_id",
    "eoi_token_id", "image_token_id",
})  # fmt: skip

# The defaults of transformers' config classes, for keys that a config.json leaves out.
_COMMON = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu",
    "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA = _COMMON | {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048}
_MISTRAL = _COMMON | {
    "vocab_size": 32_000, "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}  # fmt: skip
_QWEN2 = _COMMON | {
    "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
}  # fmt: skip
_QWEN3 = _QWEN2 | {"head_dim": 128}
_QWEN3_MOE = _QWEN2 | {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_key_value_heads": 4,
    "decoder_sparse_step": 1, "moe_intermediate_size": 768, "num_experts_per_tok": 8,
    "norm_topk_prob": False, "mlp_only_layers": [],
}  # fmt: skip
_GEMMA3 = {
    "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
}  # fmt: skip


class Keys:
    """The keys of a JSON object that have not been read yet.

    The methods remove a key and return its value, so that the keys that remain at the end are unknown. A key that is
    absent or null has its default.
    """

    def __init__(self, values: Mapping[str, Any], where: str, *, defaults: Mapping[str, Any], ignore: Ignore):
        self.values, self.where, self.defaults, self.ignore = dict(values), where, defaults, ignore

    def fail(self, key: str, value: object, wanted: str) -> NoReturn:
        raise ValueError(f"{self.where}: {key} = {shown(value)}: expected {wanted}")

    def is_null(self, key: str) -> bool:
        return key in self.values and self.values[key] is None

    def take(self, key: str, default: object = None) -> Any:
        value = self.values.pop(key, None)
        return self.defaults.get(key, default) if value is None else value

    def number(self, key: str, default: object = None) -> float:
        """A positive number."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            self.fail(key, value, "a positive number")
        return float(value)

    def count(self, key: str, default: object = None, most: int | None = None) -> int:
        """An integer from 1 to `most`."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(key, value, "an integer of 1 or more")
        if most is not None and value > most:
            self.fail(key, value, f"at most {most}")
        return value

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if not isinstance(value, bool):
            self.fail(key, value, "true or false")
        return value

    def only(self, key: str, allowed: object, reason: str) -> None:
        """Requires a key to be `allowed`, absent or null."""
        value = self.take(key, allowed)
        if value != allowed:
            self.fail(key, value, f"{json.dumps(allowed)}, since {reason}")

    def inner(self, key: str) -> "Keys":
        """The keys of the object under a key, none if it is absent or null."""
        values = self.take(key, {})
        if not isinstance(values, dict):
            self.fail(key, values, "an object")
        return Keys(values, f"{self.where}: {key}", defaults={}, ignore=self.ignore)

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Raises ValueError if a key remains that is neither null nor false, harmless or to be ignored."""
        if self.ignore is None:
            return
        for key, value in self.values.items():
            empty = value is None or value is False or (key in _DEFAULT and value == _DEFAULT[key])
            if not empty and key not in harmless and key not in self.ignore:
                raise ValueError(f"{self.where}: unknown key {key!r} = {shown(value)}: expected a key that rljax "
                                 f"knows. If this key does not change the model, add `--model.ignore {key}` (in "
                                 f"Python, `ignore=({key!r},)`)")  # fmt: skip


def read_config(folder: Path, ignore: Ignore = ()) -> TransformerConfig:
    """The transformer of the config.json in a folder, in float32 and with the `max_length` of the checkpoint.

    Raises ValueError if the config asks for anything that the transformer does not have, and for unknown keys, unless
    they are null, false or in `ignore` (None ignores all of them).
    """
    return transformer(read_json(folder, "config.json"), str(folder / "config.json"), ignore)


def transformer(values: Mapping[str, Any], where: str = "config.json", ignore: Ignore = ()) -> TransformerConfig:
    """As `read_config`, from the contents of a config.json."""
    quantization = values.get("quantization_config")
    if quantization is not None:
        raise ValueError(
            f"{where}: quantization_config = {shown(quantization)}: expected weights that are not quantized"
        )
    family = FAMILIES[architecture(values, where)]
    keys = Keys(values, where, defaults=family.defaults, ignore=ignore)
    options = family.options(keys)
    keys.finish(_HARMLESS)
    return TransformerConfig(**options)


def architecture(values: Mapping[str, Any], where: str) -> str:
    """The model's class in transformers, a key of `FAMILIES`."""
    kind, classes = values.get("model_type"), values.get("architectures")
    if classes is None:
        classes = [name for name, family in FAMILIES.items() if family.model_type == kind]
    if not isinstance(classes, list) or len(classes) != 1 or classes[0] not in list(FAMILIES):
        raise ValueError(f"{where}: architectures = {shown(values.get('architectures'))}, model_type = {shown(kind)}: "
                         f"expected one of {', '.join(FAMILIES)}")  # fmt: skip
    expected = FAMILIES[classes[0]].model_type
    if kind not in (None, expected):
        raise ValueError(f"{where}: model_type = {kind!r}: expected {expected!r}, since architectures = {classes!r}")
    return classes[0]


def _sizes(keys: Keys, activation: str = "hidden_act") -> dict[str, Any]:
    """The options that all families have."""
    width, heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    if keys.is_null("num_key_value_heads"):  # one per query head in every family, unlike an absent key
        keys.values["num_key_value_heads"] = heads
    act = keys.take(activation)
    if act not in ACTIVATIONS:
        keys.fail(activation, act, f"one of {', '.join(ACTIVATIONS)}")
    keys.only("attention_bias", False, "biases of all projections of attention are not supported")
    keys.only("mlp_bias", False, "biases of the MLP are not supported")
    return {
        "vocab_size": keys.count("vocab_size"),
        "max_length": keys.count("max_position_embeddings"),
        "tied": keys.flag("tie_word_embeddings"),
        "width": width,
        "layers": keys.count("num_hidden_layers", most=_MOST_LAYERS),
        "heads": heads,
        "kv_heads": keys.count("num_key_value_heads", heads),
        "head_dim": keys.count("head_dim", width // heads),
        "mlp": keys.count("intermediate_size"),
        "norm_eps": keys.number("rms_norm_eps"),
        "activation": ACTIVATIONS[act],
    }


def _frequencies(rope: Keys, base: float) -> tuple[float, Callable | None]:
    """Base and scaling of rotary frequencies; `base` is used if `rope` does not name one."""
    kind = rope.take("rope_type", rope.take("type", "default"))  # `type` is the old name
    base = rope.number("rope_theta", base)
    if kind == "default":
        scaling = None
    elif kind == "linear":
        scaling = LinearScaling(rope.number("factor"))
    elif kind == "llama3":
        scaling = Llama3Scaling(rope.number("factor"), rope.number("low_freq_factor"), rope.number("high_freq_factor"),
                                rope.count("original_max_position_embeddings"))  # fmt: skip
    else:
        rope.fail("rope_type", kind, "default, linear or llama3")
    rope.finish()
    return base, scaling


def _rope(keys: Keys) -> dict[str, Any]:
    """Rotary frequencies: `rope_theta` and `rope_scaling` in old files, `rope_parameters` in new ones."""
    new, old = keys.inner("rope_parameters"), keys.inner("rope_scaling")
    if new.values and old.values:
        keys.fail("rope_scaling", old.values, "null, since rope_parameters is given")
    base, scaling = _frequencies(new if new.values else old, keys.number("rope_theta"))
    return {"rope_base": base, "rope_scaling": scaling}


def _all_global(keys: Keys) -> None:
    types = keys.take("layer_types", [])
    if not isinstance(types, list) or any(kind != GLOBAL for kind in types):
        keys.fail("layer_types", types, f"{GLOBAL!r} for each layer; windows are supported in Gemma 3 only")


def _llama(keys: Keys) -> dict[str, Any]:
    return _sizes(keys) | _rope(keys)


def _mistral(keys: Keys) -> dict[str, Any]:
    options, unlimited = _sizes(keys) | _rope(keys), keys.is_null("sliding_window")
    window = keys.count("sliding_window")
    if not unlimited and window < options["max_length"]:
        keys.fail("sliding_window", window, f"null, or at least max_position_embeddings = {options['max_length']}; "
                  "windows are supported in Gemma 3 only")  # fmt: skip
    _all_global(keys)
    return options


def _qwen(keys: Keys) -> dict[str, Any]:
    keys.only("use_sliding_window", False, "windows are supported in Gemma 3 only")
    for key in ("sliding_window", "max_window_layers"):  # without effect unless use_sliding_window is true
        keys.take(key)
    _all_global(keys)
    return _sizes(keys) | _rope(keys)


def _qwen2(keys: Keys) -> dict[str, Any]:
    return _qwen(keys) | {"qkv_bias": True}


def _qwen3(keys: Keys) -> dict[str, Any]:
    return _qwen(keys) | {"qk_norm": True}


def _qwen3_moe(keys: Keys) -> dict[str, Any]:
    options, step, dense = _qwen3(keys), keys.count("decoder_sparse_step"), keys.take("mlp_only_layers")
    new = keys.take("num_local_experts")  # the name in transformers 5
    if keys.values.get("num_experts", new) != new and new is not None:
        keys.fail("num_local_experts", new, f"num_experts = {keys.values['num_experts']}")
    experts = keys.count("num_experts", new or 128, _MOST_EXPERTS)
    layers = range(options["layers"])
    if not isinstance(dense, list) or not all(i in layers for i in dense):
        keys.fail("mlp_only_layers", dense, f"indices below num_hidden_layers = {len(layers)}")
    return options | {
        "experts": experts,
        "experts_per_token": keys.count("num_experts_per_tok"),
        "expert_mlp": keys.count("moe_intermediate_size"),
        "renormalize_experts": keys.flag("norm_topk_prob"),
        "dense_layers": tuple(i for i in layers if i in dense or (i + 1) % step),
    }


def _gemma3_text(keys: Keys) -> dict[str, Any]:
    options = _sizes(keys, "hidden_activation")
    keys.only("use_bidirectional_attention", False, "attention is causal")
    if (unused := keys.take("attn_logit_softcapping")) is not None:
        warnings.warn(f"{keys.where}: attn_logit_softcapping = {unused!r} has no effect, as in transformers' Gemma 3",
                      stacklevel=2)  # fmt: skip
    capped = keys.values.get("final_logit_softcapping") is not None
    return options | _gemma3_attention(keys, options["layers"]) | {
        "softcap": keys.number("final_logit_softcapping") if capped else None,
        "qk_norm": True,
        "norm_shift": 1.0,
        "post_norm": True,
        "embedding_scale": math.sqrt(options["width"]),
        "query_scale": keys.number("query_pre_attn_scalar") ** -0.5,
    }  # fmt: skip


def _gemma3_attention(keys: Keys, layers: int) -> dict[str, Any]:
    """Local and global layers, with their windows and rotary frequencies."""
    pattern = keys.count("sliding_window_pattern", keys.take("_sliding_window_pattern", 6))
    types = keys.take("layer_types", [LOCAL if (i + 1) % pattern else GLOBAL for i in range(layers)])
    if not isinstance(types, list) or len(types) != layers or not all(kind in (LOCAL, GLOBAL) for kind in types):
        keys.fail("layer_types", types, f"{LOCAL!r} or {GLOBAL!r} for each of num_hidden_layers = {layers} layers")
    new, old = keys.inner("rope_parameters"), keys.inner("rope_scaling")
    per_type = {kind: new.inner(kind) for kind in (GLOBAL, LOCAL)}
    new.finish()
    if per_type[GLOBAL].values and old.values:
        keys.fail("rope_scaling", old.values, "null, since rope_parameters is given")
    base, scaling = _frequencies(per_type[GLOBAL] if per_type[GLOBAL].values else old, keys.number("rope_theta"))
    local_base, local_scaling = _frequencies(per_type[LOCAL], keys.number("rope_local_base_freq"))
    if local_scaling is not None:
        keys.fail("rope_parameters", local_scaling, f"the rope_type 'default' for {LOCAL!r}")
    options = {"rope_base": base, "rope_scaling": scaling}
    window = keys.count("sliding_window")
    if LOCAL in types:
        local = tuple(kind == LOCAL for kind in types)
        options |= {"local_layers": local, "window": window, "local_rope_base": local_base}
    return options


def _gemma3(keys: Keys) -> dict[str, Any]:
    """The text part of a multimodal checkpoint."""
    text = keys.inner("text_config")
    text.only("model_type", "gemma3_text", "no other text model is supported")
    text.defaults = _GEMMA3
    tied = keys.take("tie_word_embeddings")
    if tied is not None:
        text.values["tie_word_embeddings"] = tied
    options = _gemma3_text(text)
    text.finish(_HARMLESS)
    for key in _IMAGES:
        keys.take(key)
    return options


class Family(NamedTuple):
    """An architecture of transformers."""

    model_type: str
    options: Callable[[Keys], dict[str, Any]]
    """The options of `TransformerConfig` in a config.json."""
    defaults: Mapping[str, Any]


FAMILIES = {
    "LlamaForCausalLM": Family("llama", _llama, _LLAMA),
    "MistralForCausalLM": Family("mistral", _mistral, _MISTRAL),
    "Qwen2ForCausalLM": Family("qwen2", _qwen2, _QWEN2),
    "Qwen3ForCausalLM": Family("qwen3", _qwen3, _QWEN3),
    "Qwen3MoeForCausalLM": Family("qwen3_moe", _qwen3_moe, _QWEN3_MOE),
    "Gemma3ForCausalLM": Family("gemma3_text", _gemma3_text, _GEMMA3),
    "Gemma3ForConditionalGeneration": Family("gemma3", _gemma3, {}),
}
