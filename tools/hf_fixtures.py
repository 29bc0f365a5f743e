"""Tiny random Hugging Face checkpoints of every supported family, and what `transformers` computes from them.

Run in the environment of `make test-hf`: `python -m tools.hf_fixtures` rewrites tests/models/huggingface/fixtures.
A fixture is a folder as `transformers` writes it, and beside it FOLDER.npz: three rows of tokens one after the other,
their lengths, log π(v | earlier tokens of the row) at every token, and the greedy continuation of each row.
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "models" / "huggingface" / "fixtures"
LENGTHS = 19, 12, 7
NEW_TOKENS = 8
SIZES = {
    "vocab_size": 80, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture with its settings, and changes to the files that `transformers` writes for it."""

    architecture: str
    """Name of the class in `transformers`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the configuration, in addition to the sizes."""
    rewrite: Callable[[dict], dict] = dict
    """Maps the written config.json to that of the fixture, e.g. to the keys of older versions."""
    dtype: torch.dtype = torch.float32
    """Dtype of the checkpoint."""
    shard: str = "1GB"
    """Size of a file of weights, as in `save_pretrained`."""


def old_keys(config: dict, **more: Any) -> dict:
    """The keys that `transformers` 4 wrote: `torch_dtype`, `rope_theta` and `rope_scaling`."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    return config | {"transformers_version": "4.51.0"} | more


def old_gemma_keys(config: dict) -> dict:
    """Those of the published Gemma 3 checkpoints: bases and scaling as keys of their own, the pattern as a number."""
    config = dict(config)
    config["torch_dtype"] = config.pop("dtype")
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["full_attention"].pop("rope_theta")
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    config["rope_scaling"] = rope["full_attention"]
    del config["_sliding_window_pattern"], config["use_bidirectional_attention"]
    pattern = config.pop("layer_types").index("full_attention") + 1
    return config | {"sliding_window_pattern": pattern, "transformers_version": "4.51.0"}


def brief_text(config: dict) -> dict:
    """As in the published multimodal checkpoints: `text_config` names only what is not the default of its class."""
    default = transformers.Gemma3TextConfig().to_dict()
    text = {key: value for key, value in config["text_config"].items() if value != default.get(key)}
    return config | {"text_config": text | {"model_type": "gemma3_text"}}


def old_moe_keys(config: dict) -> dict:
    config = old_keys(config)
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    return config


def gemma(*layers: str, **more: Any) -> dict:
    """Settings of Gemma 3: layers of both kinds, a window shorter than the rows, both bases, its own query scale."""
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 300.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    }
    kinds = [f"{kind}_attention" for kind in layers]
    return {"layer_types": kinds, "num_hidden_layers": len(kinds), "sliding_window": 5, "rope_parameters": rope,
            "query_pre_attn_scalar": 9, "pad_token_id": 0} | more  # fmt: skip


def rope(theta: float, **scaling: Any) -> dict:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | scaling}


EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "num_hidden_layers": 3} | rope(60.0)
FAMILIES = {
    "llama": Family("LlamaForCausalLM", rope(100.0) | {"rms_norm_eps": 0.02}),
    "llama3": Family("LlamaForCausalLM", rope(300.0, rope_type="llama3", **LLAMA3), shard="12KB"),
    "llama3_old": Family("LlamaForCausalLM", rope(300.0, rope_type="llama3", **LLAMA3) | {"tie_word_embeddings": True},
                         partial(old_keys, pretraining_tp=1, mlp_bias=False)),
    "smollm2": Family("LlamaForCausalLM", {"tie_word_embeddings": True} | rope(200.0),
                      partial(old_keys, pretraining_tp=1, is_llama_config=True, rope_interleaved=False),
                      dtype=torch.bfloat16),
    "mistral": Family("MistralForCausalLM", {"sliding_window": None, "head_dim": 6} | rope(100.0)),
    "qwen2": Family("Qwen2ForCausalLM", {"tie_word_embeddings": True} | rope(80.0),
                    partial(old_keys, use_sliding_window=False, sliding_window=32768, max_window_layers=2)),
    "qwen3": Family("Qwen3ForCausalLM", {"head_dim": 6} | rope(80.0)),
    "qwen3_moe": Family("Qwen3MoeForCausalLM", EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "qwen3_moe_old": Family("Qwen3MoeForCausalLM", EXPERTS | {"norm_topk_prob": False, "decoder_sparse_step": 2},
                            old_moe_keys),
    "gemma3": Family("Gemma3ForCausalLM", gemma("sliding", "sliding", "full", "sliding", "sliding")),
    "gemma3_old": Family("Gemma3ForCausalLM", gemma("sliding", "full", "sliding"), old_gemma_keys),
    "gemma3_cap": Family("Gemma3ForCausalLM", gemma("full", "sliding", final_logit_softcapping=3.0)),
    "gemma3_vision": Family("Gemma3ForConditionalGeneration", gemma("sliding", "full"), brief_text, shard="16KB"),
}  # fmt: skip


def configuration(family: Family, **sizes: Any) -> transformers.PretrainedConfig:
    """The family's configuration with SIZES, its own settings, and `sizes`, in increasing priority."""
    settings = SIZES | family.settings | sizes | {"dtype": family.dtype, "bos_token_id": None, "eos_token_id": None}
    kind = getattr(transformers, family.architecture).config_class
    if kind is not transformers.Gemma3Config:
        return kind(**settings)
    vocab = settings.pop("vocab_size")
    text = settings | {"vocab_size": vocab, "model_type": "gemma3_text"}
    return kind(text_config=text, vision_config=VISION | {"dtype": family.dtype}, mm_tokens_per_image=1,
                boi_token_index=vocab - 3, eoi_token_index=vocab - 2, image_token_index=vocab - 1,
                dtype=family.dtype)  # fmt: skip


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draws all parameters anew, so large that each affects the output: norms far from 1, biases far from 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, x in sorted(model.named_parameters()):
        noise = torch.randn(x.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            one = 0.0 if "Gemma3" in type(model).__name__ else 1.0
            x.copy_(one + 0.4 * noise)
        elif x.ndim == 1:
            x.copy_(0.7 * noise)
        elif "embed_tokens" in name or "lm_head" in name:
            x.copy_(1.6 * x.shape[-1] ** -0.5 * noise)
        else:
            x.copy_(1.2 * x.shape[-1] ** -0.5 * noise)


def write(folder: pathlib.Path, family: Family, seed: int, **sizes: Any) -> None:
    """Writes a random checkpoint of `family` to `folder`, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    model = getattr(transformers, family.architecture)(configuration(family, **sizes)).to(family.dtype)
    randomize(model, seed)
    model.save_pretrained(folder, max_shard_size=family.shard)
    path = folder / "config.json"
    config = family.rewrite(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(folder: pathlib.Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The checkpoint of `folder` in `transformers`, with plain loops for attention and experts."""
    kind = getattr(transformers, json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])
    more = {"experts_implementation": "eager"} if kind is transformers.Qwen3MoeForCausalLM else {}
    model = kind.from_pretrained(folder, dtype=dtype, attn_implementation="eager", **more).eval()
    model.generation_config.eos_token_id = None
    return model


def rows(seed: int, vocab_size: int, lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray]:
    """Random rows of tokens. Id 0, which pads, and the last three, which are image tokens of Gemma 3, are left out."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, vocab_size - 3, length, np.int32) for length in lengths]


def left_padded(tokens: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of tokens as one array [B, T], and its attention mask."""
    width = max(map(len, tokens))
    padded = np.stack([np.pad(row, (width - len(row), 0)) for row in tokens])
    return padded, np.stack([np.arange(width) >= width - len(row) for row in tokens])


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, tokens: list[np.ndarray]) -> list[np.ndarray]:
    """log π [T, V] of each row of tokens, computed alone."""
    logits = [model(input_ids=torch.tensor(row[None])).logits[0] for row in tokens]
    return [torch.log_softmax(row.to(torch.promote_types(row.dtype, torch.float32)), -1).numpy() for row in logits]


@torch.no_grad()
def padded_log_probabilities(model: torch.nn.Module, tokens: list[np.ndarray]) -> list[np.ndarray]:
    """log π [T, V] of each row of tokens, computed together, padded on the left."""
    ids, mask = map(torch.tensor, left_padded(tokens))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
    found = torch.log_softmax(logits, -1)
    return [row[-len(own) :].numpy() for row, own in zip(found, tokens, strict=True)]


@torch.no_grad()
def greedy(model: torch.nn.Module, tokens: list[np.ndarray], new_tokens: int = NEW_TOKENS) -> np.ndarray:
    """The most probable continuation [B, new_tokens] of each row of tokens."""
    ids, mask = map(torch.tensor, left_padded(tokens))
    found = model.generate(
        input_ids=ids, attention_mask=mask.long(), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    return found[:, ids.shape[1] :].numpy().astype(np.int32)


def margin(model: torch.nn.Module, tokens: list[np.ndarray], continuation: np.ndarray) -> float:
    """The smallest distance, in log π, of a greedy token from the second best; without which ties could break."""
    whole = [np.concatenate(pair) for pair in zip(tokens, continuation, strict=True)]
    steps = [logp[len(row) - 1 : -1] for logp, row in zip(log_probabilities(model, whole), tokens, strict=True)]
    best = np.sort(np.concatenate(steps), axis=-1)
    return float((best[:, -1] - best[:, -2]).min())


def attempts(model: torch.nn.Module, seed: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Rows of tokens from seeds that start at 100 · seed, with their greedy continuations."""
    for again in itertools.count(100 * seed):
        tokens = rows(again, SIZES["vocab_size"])
        yield tokens, greedy(model, tokens)


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    shutil.rmtree(FIXTURES, ignore_errors=True)
    for seed, (name, family) in enumerate(FAMILIES.items()):
        folder = FIXTURES / name
        write(folder, family, seed)
        model = read(folder)
        tokens, continuation = next(found for found in attempts(model, seed) if margin(model, *found) > 0.02)
        logps = log_probabilities(model, tokens)
        padded = difference(logps, padded_log_probabilities(model, tokens))
        double = difference(logps, log_probabilities(read(folder, torch.float64), tokens))
        np.savez(FIXTURES / f"{name}.npz", tokens=np.concatenate(tokens), lengths=np.array(LENGTHS, np.int32),
                 logps=np.concatenate(logps), greedy=continuation)  # fmt: skip
        size = sum(path.stat().st_size for path in FIXTURES.glob(f"{name}*/*")) / 1000
        print(f"{name}: {size:.0f} kB, left-padded {padded:.1e}, float64 {double:.1e}")
        assert padded < 1e-5, name
    print(f"{sum(path.stat().st_size for path in FIXTURES.rglob('*') if path.is_file()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
