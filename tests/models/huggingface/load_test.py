import ctypes
import json
import os
import re
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from rljax.models import Decoder, load
from rljax.models.huggingface.files import Tensor
from tests.models.huggingface.folders import (
    FAMILIES,
    SIZES,
    C,
    D,
    E,
    H,
    K,
    V,
    bfloat16,
    tensors,
    write,
    write_shards,
)  # fmt: skip
from tests.models.small import mesh_of

hidden_of = jax.jit(Decoder.hidden, static_argnums=0)


def equal(a, b) -> bool:
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(same))


def test_linear_maps_are_transposed_and_split_into_heads(tmp_path):
    model, params = load(write(tmp_path, "qwen2"))
    file = tensors("qwen2")
    attention, layer = params["blocks"][1]["attention"], "model.layers.1.self_attn."
    for i in range(H):
        rows = slice(i * C, (i + 1) * C)
        np.testing.assert_array_equal(attention["query"][:, i], file[layer + "q_proj.weight"][rows].T)
        np.testing.assert_array_equal(attention["query_bias"][i], file[layer + "q_proj.bias"][rows])
        np.testing.assert_array_equal(attention["out"][i], file[layer + "o_proj.weight"][:, rows].T)
    for name, bias in (("key", "k_proj"), ("value", "v_proj")):
        for i in range(K):
            rows = slice(i * C, (i + 1) * C)
            np.testing.assert_array_equal(attention[name][:, i], file[f"{layer}{bias}.weight"][rows].T)
            np.testing.assert_array_equal(attention[f"{name}_bias"][i], file[f"{layer}{bias}.bias"][rows])
    block = params["blocks"][1]
    for ours, theirs in (("gate", "gate_proj"), ("up", "up_proj"), ("down", "down_proj")):
        np.testing.assert_array_equal(block["mlp"][ours], file[f"model.layers.1.mlp.{theirs}.weight"].T)
    for ours, theirs in (("attention_norm", "input_layernorm"), ("mlp_norm", "post_attention_layernorm")):
        np.testing.assert_array_equal(block[ours]["scale"], file[f"model.layers.1.{theirs}.weight"])
    np.testing.assert_array_equal(params["norm"]["scale"], file["model.norm.weight"])
    np.testing.assert_array_equal(model.unembedding(params), file["lm_head.weight"])
    assert model.unembedding(params).shape == (V, D)
    assert model.max_length == SIZES["max_position_embeddings"]


def test_padding_rows_of_the_tables_are_zeros(tmp_path):
    _, params = load(write(tmp_path))
    for name, file in (("embedding", "model.embed_tokens.weight"), ("unembedding", "lm_head.weight")):
        assert params[name].shape == (128, D)
        np.testing.assert_array_equal(params[name][:V], tensors("llama")[file])
        assert not np.any(params[name][V:])


def test_experts_are_stacked(tmp_path):
    _, params = load(write(tmp_path, "qwen3_moe"))
    mlp, file = params["blocks"][1]["mlp"], tensors("qwen3_moe")
    np.testing.assert_array_equal(mlp["router"], file["model.layers.1.mlp.gate.weight"].T)
    for e in range(E):
        for ours in ("gate", "up", "down"):
            theirs = file[f"model.layers.1.mlp.experts.{e}.{ours}_proj.weight"]
            np.testing.assert_array_equal(mlp[ours][e], theirs.T)
    np.testing.assert_array_equal(params["blocks"][0]["mlp"]["up"], file["model.layers.0.mlp.up_proj.weight"].T)


def test_norms_of_gemma3(tmp_path):
    _, params = load(write(tmp_path, "gemma3_text"))
    file = tensors("gemma3_text")
    for ours, theirs in (("attention_norm", "input"), ("attention_post_norm", "post_attention"),
                         ("mlp_norm", "pre_feedforward"), ("mlp_post_norm", "post_feedforward")):  # fmt: skip
        expected = file[f"model.layers.0.{theirs}_layernorm.weight"]
        np.testing.assert_array_equal(params["blocks"][0][ours]["scale"], expected)


@pytest.mark.parametrize(("body", "head"), [
    ("language_model.model.", "language_model.lm_head.weight"), ("model.language_model.", "lm_head.weight"),
])  # fmt: skip
def test_both_prefixes_of_multimodal_checkpoints(tmp_path, body, head):
    text = tensors("gemma3_text", body=body, head=head)
    images = "model." if body.startswith("model.") else ""
    text[images + "vision_tower.weight"] = np.ones(3, np.float32)
    _, params = load(write(tmp_path / "a", "gemma3", weights=text))
    assert equal(params, load(write(tmp_path / "b", "gemma3_text"))[1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 2, 1)])
def test_every_mesh_gives_the_same_parameters(family, sizes, tmp_path):
    write(tmp_path, family)
    mesh = mesh_of(sizes)
    model, alone = load(tmp_path)
    _, params = load(tmp_path, mesh=mesh)
    assert equal(params, alone)
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh))
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert all(x.sharding.mesh.size == 1 for x in jax.tree.leaves(alone))


@pytest.mark.parametrize("stored", [np.float16, bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes(stored, dtype, tmp_path):
    weights = tensors("llama", stored)
    model, params = load(write(tmp_path, weights=weights), dtype=dtype)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}
    assert (model.config.dtype, model.config.param_dtype) == (dtype, dtype)
    expected = weights["lm_head.weight"].astype(dtype)
    np.testing.assert_array_equal(params["unembedding"][:V], expected)


def test_the_model_runs_in_its_dtype(tmp_path):
    for dtype in ("float32", "bfloat16"):
        model, params = load(write(tmp_path, "gemma3_text"), dtype=dtype)
        tokens = np.arange(12, dtype=np.int32).reshape(2, 6)
        hidden = hidden_of(model, params, tokens, np.ones_like(tokens))
        assert (hidden.dtype, hidden.shape) == (dtype, (2, 6, D))
        assert np.isfinite(np.float32(hidden)).all()


def test_parameters_can_be_donated(tmp_path):
    _, params = load(write(tmp_path))
    x = params["unembedding"]
    place = x.unsafe_buffer_pointer()
    assert jax.jit(lambda x: x + 1, donate_argnums=0)(x).unsafe_buffer_pointer() == place


def test_shards_with_an_index(tmp_path):
    assert equal(load(write_shards(tmp_path / "a"))[1], load(write(tmp_path / "b"))[1])


def test_a_folder_in_the_cache_of_the_hub(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    write_shards(snapshot)
    blobs.mkdir()
    for i, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(i))
        path.symlink_to(f"../../blobs/{i}")
    assert equal(load(snapshot)[1], load(write(tmp_path / "b"))[1])


def test_buffers_of_old_checkpoints_are_ignored(tmp_path):
    weights = tensors("llama") | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    assert equal(load(write(tmp_path / "a", weights=weights))[1], load(write(tmp_path / "b"))[1])


def test_a_stored_copy_of_a_tied_table_must_be_equal(tmp_path):
    weights = tensors("qwen3")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].copy()
    assert equal(load(write(tmp_path / "a", "qwen3", weights=weights))[1], load(write(tmp_path / "b", "qwen3"))[1])
    weights["lm_head.weight"][-1, -1] += 1
    with pytest.raises(ValueError, match="the unembedding table differs from the embedding table"):
        load(write(tmp_path / "a", "qwen3", weights=weights))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to reset the peak of memory")
def test_peak_memory_stays_below_the_parameters_plus_one_tensor(tmp_path):
    big = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 4096, "head_dim": 256}
    shape = {V: 4096, D: 1024, H * C: 1024, K * C: 512, 20: 4096}
    weights = {name: np.zeros([shape[n] for n in x.shape], np.float32) + 1 for name, x in tensors("llama").items()}
    write(tmp_path, weights=weights, **big)
    del weights
    jax.block_until_ready(load(tmp_path)[1])  # tracing and compiling need memory too
    ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory hides what is used again
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmHWM")
    _, params = load(tmp_path)
    jax.block_until_ready(params)
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    assert memory("VmHWM") - before < sum(sizes) + max(sizes) + 4 * 2**20


def memory(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def test_only_the_needed_part_is_read(tmp_path, monkeypatch):
    read_bytes, array = [], Tensor.array

    class Counted(np.ndarray):
        def __array_finalize__(self, other):
            pass

        def __getitem__(self, index):
            part = super().__getitem__(index)
            read_bytes.append(part.nbytes)
            return part.view(np.ndarray)

    monkeypatch.setattr(Tensor, "array", lambda self: array(self).view(Counted))
    load(write(tmp_path), mesh=mesh_of((1, 4, 2)))
    stored = sum(x.nbytes for x in tensors("llama").values())
    assert sum(read_bytes) == stored  # replicated tensors once
    assert max(read_bytes) == 4 * V * (D // 4)  # a quarter of the columns of a table, in bytes


# Bad input


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist: .*`hf download ORG/NAME --local-dir .*none`"):
        load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="`make models/smollm2` creates it"):
        load(tmp_path / "models" / "smollm2")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match="is a file: expected the folder"):
        load(tmp_path / "x.gguf")


def without(name: str) -> dict:
    return {key: x for key, x in tensors("llama").items() if key != name}


@pytest.mark.parametrize(("weights", "message"), [
    (without("model.layers.1.mlp.up_proj.weight"), "tensor 'model.layers.1.mlp.up_proj.weight' is missing"),
    (without("model.embed_tokens.weight"), "tensor 'model.embed_tokens.weight' is missing"),
    (tensors("llama") | {"extra.weight": np.ones(2, np.float32)}, "tensor 'extra.weight' is not in the model"),
    (tensors("qwen2"), "tensor 'model.layers.0.self_attn.k_proj.bias' is not in the model"),
    (tensors("llama") | {"vision_tower.x": np.ones(2, np.float32)}, "tensor 'vision_tower.x' is not in the model"),
    (tensors("llama") | {"model.norm.weight": np.ones(D + 1, np.float32)},
     r"tensor 'model.norm.weight' has shape \(17,\): expected \(16,\)"),
    (tensors("llama") | {"model.norm.weight": np.ones(D, np.int8)}, "'model.norm.weight' has dtype I8: expected"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(weights, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, weights=weights))


@pytest.mark.parametrize(("changes", "message"), [
    ({"vocab_size": 36}, r"tensor 'lm_head.weight' has shape \(37, 16\): expected \(36, 16\), as in config.json"),
    ({"num_hidden_layers": 3}, "tensor 'model.layers.2.* is missing"),
    ({"num_hidden_layers": 1}, "tensor 'model.layers.1.* is not in the model"),
    ({"num_key_value_heads": 4}, r"has shape \(12, 16\): expected \(24, 16\)"),
    ({"tie_word_embeddings": True}, "the unembedding table differs"),
])  # fmt: skip
def test_a_config_that_contradicts_the_weights(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, **changes))


def test_float8_is_refused(tmp_path):
    header = header_of(write(tmp_path))
    entry = header["model.norm.weight"]
    entry["dtype"], entry["shape"] = "F8_E4M3", [4 * D]
    rewrite(tmp_path, header)
    with pytest.raises(ValueError, match=r"'model.norm.weight' has dtype F8_E4M3: expected one of F64"):
        load(tmp_path)


def header_of(folder: Path) -> dict:
    raw = (folder / "model.safetensors").read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def rewrite(folder: Path, header: dict | bytes) -> None:
    """Replaces the header of model.safetensors and keeps the data."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_truncated_file_names_the_tensor(tmp_path):
    header = header_of(write(tmp_path))
    last = max((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"][1])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"tensor '{last}' is truncated: expected bytes up to"):
        load(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"data_offsets": [0, 8]}, "has 8 bytes: expected 64, since its shape is .16,. and its dtype F32"),
    ({"data_offsets": [-64, 0]}, "expected dtype, shape and data_offsets in the header"),
    ({"data_offsets": [0, 10**15]}, "is truncated"),
    ({"shape": [-16]}, "expected dtype, shape and data_offsets in the header"),
    ({"shape": [8]}, "has 64 bytes: expected 32"),
    ({"shape": "x"}, "expected dtype, shape and data_offsets in the header"),
    ({"dtype": "F32X"}, "expected a valid safetensors file"),
    ({"dtype": None}, "expected dtype, shape and data_offsets in the header"),
])  # fmt: skip
def test_a_header_that_lies_is_refused(change, message, tmp_path):
    header = header_of(write(tmp_path))
    header["model.norm.weight"] |= change
    rewrite(tmp_path, header)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_tensors_that_overlap_are_refused(tmp_path):
    header = header_of(write(tmp_path))
    a, b = "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"
    header[a]["data_offsets"] = header[b]["data_offsets"]
    rewrite(tmp_path, header)
    with pytest.raises(ValueError, match="expected a valid safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize(("raw", "message"), [
    (b"", "header of 0 bytes|not JSON"),
    (b"\xff" * 64, "found a header of .* bytes in a file of 64 bytes"),
    ((10).to_bytes(8, "little") + b"x" * 10, "found a header that is not JSON"),
    ((2).to_bytes(8, "little") + b"[]", "found a header that is not an object"),
    ((13).to_bytes(8, "little") + b'{"a":1,"a":2}', "a key occurs twice"),
    ((7).to_bytes(8, "little") + b'{"a":1}', "tensor 'a': expected dtype, shape and data_offsets"),
])  # fmt: skip
def test_files_that_are_not_safetensors(raw, message, tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("opened",)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
def test_a_pickle_is_refused_and_never_opened(name, tmp_path, monkeypatch):
    import pickle

    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / name, "w") as archive:  # the format of torch.save
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    message = "expected a safetensors file" if name.startswith("model.s") else f"found {name}, which is a pickle"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folder)
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folder)
    assert not (tmp_path / "opened").exists()


def test_nothing_but_config_and_weights_is_needed_or_executed(tmp_path):
    write(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    load(tmp_path)
    assert "modeling" not in sys.modules


def test_no_weights(tmp_path):
    (write(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors and model.safetensors.index.json do not exist"):
        load(tmp_path)


def index_with(folder: Path, file: object) -> Path:
    write_shards(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = file
    path.write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(("file", "message"), [
    ("../a.safetensors", "file = '../a.safetensors': expected the name of a file in this folder"),
    ("/etc/a.safetensors", "expected the name of a file in this folder"),
    ("..\\a.safetensors", "expected the name of a file in this folder"),
    ("sub/a.safetensors", "expected the name of a file in this folder"),
    ("a.bin", "file = 'a.bin': expected a .safetensors file"),
    ("", "expected a .safetensors file"),
    (5, "expected an object with a file name per tensor"),
    ("model-00003-of-00002.safetensors", "model-00003-of-00002.safetensors does not exist"),
])  # fmt: skip
def test_an_index_that_points_elsewhere(file, message, tmp_path):
    save_file(tensors("llama"), tmp_path / "a.safetensors")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(index_with(tmp_path / "model", file))


@pytest.mark.parametrize("target", ["../a.safetensors", "/etc/passwd", "sub/a.safetensors"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_that_leads_out_of_the_folder(name, target, tmp_path):
    save_file(tensors("llama"), tmp_path / "a.safetensors")
    folder = write(tmp_path / "model")
    (folder / "sub").mkdir()
    save_file(tensors("llama"), folder / "sub" / "a.safetensors")
    (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match="expected a file in this folder, found a link to"):
        load(folder)


def test_an_index_that_does_not_match_its_files(tmp_path):
    path = write_shards(tmp_path) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    file = index["weight_map"].pop("model.norm.weight")
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"'model.norm.weight' is not in the index but in {file}"):
        load(tmp_path)
    index["weight_map"] |= {"model.norm.weight": file, "other": file}
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"'other' is missing from {file}"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int8", "float64"])
def test_a_dtype_that_is_not_supported(dtype, tmp_path):
    with pytest.raises(ValueError, match=f"dtype = '{dtype}': expected float32 or bfloat16"):
        load(write(tmp_path), dtype=dtype)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'rljax-llm\[hf\]'"):
        load(write(tmp_path))
