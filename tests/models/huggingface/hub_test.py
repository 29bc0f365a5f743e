"""The config.json of published models, in the keys of transformers 4 and 5."""

import pytest

from rljax.models.huggingface.config import transformer
from rljax.models.rope import LinearScaling, Llama3Scaling

# Written by every model.
COMMON = {"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0,
          "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
          "use_cache": True}  # fmt: skip
LLAMA3 = {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
          "rope_type": "llama3"}  # fmt: skip
LLAMA = COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
                  "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-5}  # fmt: skip
QWEN = COMMON | {"hidden_act": "silu", "rms_norm_eps": 1e-6, "use_sliding_window": False, "vocab_size": 151936}
QWEN3 = QWEN | {"attention_bias": False, "rope_scaling": None, "sliding_window": None, "head_dim": 128,
                "max_position_embeddings": 40960}  # fmt: skip
GEMMA3 = COMMON | {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256, "num_key_value_heads": 1,
    "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 32768, "num_attention_heads": 4,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_scaling": None, "sliding_window": 512,
    "vocab_size": 262144,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02,
    "mm_tokens_per_image": 256, "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152},
    "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024},
}  # fmt: skip
# What older versions of transformers wrote into nested configs in addition.
VERBOSE = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "cache_implementation": "hybrid", "chunk_size_feed_forward": 0, "diversity_penalty": 0.0, "do_sample": False,
    "encoder_no_repeat_ngram_size": 0, "exponential_decay_length_penalty": None, "id2label": {"0": "LABEL_0"},
    "is_decoder": False, "label2id": {"LABEL_0": 0}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
    "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "pruned_heads": {},
    "problem_type": None, "repetition_penalty": 1.0, "return_dict": True, "sliding_window_pattern": 6,
    "task_specific_params": None, "temperature": 1.0, "tie_word_embeddings": True, "tokenizer_class": None,
    "top_k": 50, "top_p": 1.0, "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip
PERIOD = ["sliding_attention"] * 5 + ["full_attention"]
LOCAL = (True,) * 5 + (False,)

PUBLISHED = {
    "Llama-3.2-1B-Instruct": (
        LLAMA | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072,
                 "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "rope_scaling": LLAMA3,
                 "rope_theta": 500000.0, "tie_word_embeddings": True, "vocab_size": 128256},
        {"width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64, "mlp": 8192, "tied": True,
         "rope_base": 500000.0, "rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192), "norm_eps": 1e-5},
    ),
    "SmolLM2-135M-Instruct": (
        LLAMA | {"hidden_size": 576, "intermediate_size": 1536, "is_llama_config": True, "num_attention_heads": 9,
                 "max_position_embeddings": 8192, "num_hidden_layers": 30, "num_key_value_heads": 3,
                 "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000, "tie_word_embeddings": True,
                 "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "vocab_size": 49152},
        {"width": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "rope_base": 1e5, "tied": True},
    ),
    "Mistral-7B-Instruct-v0.3": (
        COMMON | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
                  "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
                  "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
                  "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False, "vocab_size": 32768},
        {"head_dim": 128, "kv_heads": 8, "rope_base": 1e6, "tied": False, "norm_eps": 1e-5, "local_layers": ()},
    ),
    "Qwen2.5-0.5B-Instruct": (
        QWEN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896,
                "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
                "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0,
                "sliding_window": 32768, "tie_word_embeddings": True},
        {"head_dim": 64, "kv_heads": 2, "qkv_bias": True, "qk_norm": False, "rope_base": 1e6, "tied": True},
    ),
    "Qwen3-0.6B": (
        QWEN3 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
                 "intermediate_size": 3072, "max_window_layers": 28, "num_attention_heads": 16,
                 "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_theta": 1000000, "tie_word_embeddings": True},
        {"width": 1024, "heads": 16, "head_dim": 128, "qkv_bias": False, "qk_norm": True, "rope_base": 1e6},
    ),
    "Qwen3-30B-A3B": (
        QWEN3 | {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "decoder_sparse_step": 1,
                 "hidden_size": 2048, "intermediate_size": 6144, "max_window_layers": 48, "mlp_only_layers": [],
                 "moe_intermediate_size": 768, "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128,
                 "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
                 "output_router_logits": False, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001,
                 "tie_word_embeddings": False},
        {"experts": 128, "experts_per_token": 8, "expert_mlp": 768, "renormalize_experts": True, "dense_layers": (),
         "head_dim": 128, "qk_norm": True, "tied": False},
    ),
    "gemma-3-270m-it": (
        GEMMA3 | {"_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048,
                  "layer_types": PERIOD * 3, "num_hidden_layers": 18, "rope_local_base_freq": 10000.0,
                  "rope_theta": 1000000.0, "use_bidirectional_attention": False},
        {"local_layers": LOCAL * 3, "window": 512, "rope_base": 1e6, "local_rope_base": 1e4, "tied": True},
    ),
    "gemma-3-1b-it": (
        GEMMA3 | {"cache_implementation": "hybrid", "hidden_size": 1152, "intermediate_size": 6912,
                  "num_hidden_layers": 26, "rope_local_base_freq": 10000, "rope_theta": 1000000,
                  "sliding_window_pattern": 6},
        {"local_layers": LOCAL * 4 + (True, True), "window": 512, "query_scale": 1 / 16, "embedding_scale": 1152**0.5,
         "norm_shift": 1.0, "post_norm": True, "qk_norm": True, "tied": True, "softcap": None},
    ),
    "gemma-3-4b-it": (
        GEMMA3_4B,
        {"vocab_size": 262208, "heads": 8, "kv_heads": 4, "head_dim": 256, "rope_base": 1e6, "window": 1024,
         "rope_scaling": LinearScaling(8.0), "local_layers": LOCAL * 5 + (True,) * 4, "max_length": 131072},
    ),
}  # fmt: skip


def renamed(values: dict) -> dict:
    """`values` in the keys of transformers 5."""
    values = values | {"dtype": values["torch_dtype"], "transformers_version": "5.2.0"}
    old = {key: values.pop(key, None) for key in ("torch_dtype", "rope_scaling", "rope_theta", "rope_local_base_freq")}
    if values["model_type"] == "gemma3":
        return values | {"text_config": renamed({"torch_dtype": None} | values["text_config"])}
    scaled = {"rope_type": "default"} | (old["rope_scaling"] or {})
    if values["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": 10000.0}
        scaled = {"full_attention": scaled | {"rope_theta": 1000000.0}, "sliding_attention": local}
    else:
        scaled["rope_theta"] = old["rope_theta"]
    if "num_experts" in values:
        values["num_local_experts"] = values.pop("num_experts")
    return values | {"rope_parameters": scaled}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_read(name):
    values, expected = PUBLISHED[name]
    found = transformer(values)
    assert {option: getattr(found, option) for option in expected} == expected
    assert transformer(renamed(values)) == found


def test_verbose_nested_configs_are_read():
    verbose = GEMMA3_4B | {"text_config": VERBOSE | GEMMA3_4B["text_config"]}
    assert transformer(verbose) == transformer(GEMMA3_4B)
