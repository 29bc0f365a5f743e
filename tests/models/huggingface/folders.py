"""Tiny Hugging Face folders with random weights, whose tensor names and shapes are written out here."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

D, LAYERS, H, K, C, M, V, E, F = 16, 2, 4, 2, 6, 20, 37, 3, 12
"""Width, layers, heads, key heads, head size, MLP size, tokens, experts, expert size."""

SIZES = {
    "vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": H, "num_key_value_heads": K,
    "head_dim": C, "intermediate_size": M, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
EXPERTS = {"num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": F, "mlp_only_layers": [0]}
TEXT = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 9}
FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": 500.0},
    "mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True},
    "qwen3_moe": {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"} | EXPERTS,
    "gemma3_text": {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "tie_word_embeddings": True}
    | TEXT,
}


def config(family: str, **changes) -> dict:
    if family == "gemma3":
        text = config("gemma3_text")
        del text["architectures"], text["torch_dtype"]
        changes = {"text_config": text, "vision_config": {"hidden_size": 4}, "mm_tokens_per_image": 4} | changes
        return {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "dtype": "float32",
        } | changes
    return SIZES | FAMILIES[family] | changes


def shapes(family: str, body: str = "model.", head: str = "lm_head.weight") -> dict[str, tuple[int, ...]]:
    """The tensors that transformers saves for `config(family)`."""
    if family == "gemma3":
        images = {"vision_tower.embeddings.patch_embedding.weight": (4, 3, 2, 2),
                  "multi_modal_projector.mm_input_projection_weight": (4, D)}  # fmt: skip
        return shapes("gemma3_text", "language_model.model.") | images
    tied = FAMILIES[family].get("tie_word_embeddings", False)
    found = {body + "embed_tokens.weight": (V, D), body + "norm.weight": (D,)} | ({} if tied else {head: (V, D)})
    for i in range(LAYERS):
        layer = {
            "input_layernorm.weight": (D,),
            "post_attention_layernorm.weight": (D,),
            "self_attn.q_proj.weight": (H * C, D),
            "self_attn.k_proj.weight": (K * C, D),
            "self_attn.v_proj.weight": (K * C, D),
            "self_attn.o_proj.weight": (D, H * C),
        }
        if family == "qwen2":
            layer |= {"self_attn.q_proj.bias": (H * C,), "self_attn.k_proj.bias": (K * C,)}
            layer |= {"self_attn.v_proj.bias": (K * C,)}
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            layer |= {"self_attn.q_norm.weight": (C,), "self_attn.k_norm.weight": (C,)}
        if family == "gemma3_text":
            layer |= {"pre_feedforward_layernorm.weight": (D,), "post_feedforward_layernorm.weight": (D,)}
        if family == "qwen3_moe" and i == 1:
            layer["mlp.gate.weight"] = (E, D)
            for e in range(E):
                layer |= _mlp(f"mlp.experts.{e}.", F)
        else:
            layer |= _mlp("mlp.", M)
        found |= {f"{body}layers.{i}.{name}": shape for name, shape in layer.items()}
    return found


def _mlp(prefix: str, size: int) -> dict[str, tuple[int, ...]]:
    return {
        prefix + "gate_proj.weight": (size, D),
        prefix + "up_proj.weight": (size, D),
        prefix + "down_proj.weight": (D, size),
    }


def tensors(family: str, dtype=np.float32, **prefix) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes(family, **prefix).items()}


def write(folder: Path, family: str = "llama", *, weights=None, **changes) -> Path:
    """Writes config.json, with `changes`, and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(family, **changes)))
    save_file(tensors(family) if weights is None else weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_shards(folder: Path, family: str = "llama") -> Path:
    """As `write`, in two files and an index."""
    write(folder, family)
    everything = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {}
    for i in range(2):
        file = f"model-{i + 1:05}-of-00002.safetensors"
        shard = {name: x for j, (name, x) in enumerate(sorted(everything.items())) if j % 2 == i}
        save_file(shard, folder / file, {"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of all files of a folder, as the safetensors library reads them."""
    return {name: x for path in sorted(folder.glob("*.safetensors")) for name, x in load_file(path).items()}


bfloat16 = ml_dtypes.bfloat16
