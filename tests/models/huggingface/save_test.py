import dataclasses
import errno
import importlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from rljax.models import Decoder, TransformerConfig, create, load, save, without_value_head
from tests.models.huggingface.folders import FAMILIES, bfloat16, read, tensors, write, write_shards
from tests.models.small import CONFIG, make, mesh_of

MODULE = importlib.import_module("rljax.models.huggingface.save")


def assert_same_tensors(a: Path, b: Path) -> None:
    """Equal names, dtypes, shapes and bytes."""
    mine, theirs = read(a), read(b)
    assert mine.keys() == theirs.keys()
    for name, x in mine.items():
        assert (x.dtype, x.shape, x.tobytes()) == (theirs[name].dtype, theirs[name].shape, theirs[name].tobytes()), name


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_a_round_trip_gives_equal_tensors_and_config(family, sizes, tmp_path):
    source, copy = write(tmp_path / "source", family), tmp_path / "deep" / "copy"
    save(copy, *load(source, mesh=mesh_of(sizes)), like=source)
    assert_same_tensors(source, copy)
    assert json.loads((copy / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors"]
    with safe_open(copy / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_without_like(family, tmp_path):
    source, copy = write(tmp_path / "source", family), tmp_path / "copy"
    model, params = load(source)
    save(copy, model, params)
    assert_same_tensors(source, copy)
    assert load(copy)[0].config == model.config


@pytest.mark.parametrize(("dtype", "stored"), [("bfloat16", bfloat16), ("float16", np.float16)])
def test_a_round_trip_of_half_precision(dtype, stored, tmp_path):
    source = write(tmp_path / "source", "gemma3", weights=tensors("gemma3", stored), dtype=dtype)
    save(tmp_path / "copy", *load(source), like=source, dtype=dtype)
    assert_same_tensors(source, tmp_path / "copy")
    if dtype == "bfloat16":
        save(tmp_path / "same", *load(source, dtype="bfloat16"), like=source)
        assert_same_tensors(source, tmp_path / "same")


def test_the_dtype_is_written_to_the_config(tmp_path):
    source = write(tmp_path / "source", "gemma3")
    save(tmp_path / "a", *load(source), like=source, dtype="bfloat16")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (values["dtype"], "torch_dtype" in values) == ("bfloat16", False)
    found = read(tmp_path / "a")
    images = "vision_tower.embeddings.patch_embedding.weight"
    assert {x.dtype.name for name, x in found.items() if name.startswith("language_model.")} == {"bfloat16"}
    np.testing.assert_array_equal(found[images], read(source)[images])
    save(tmp_path / "b", *load(write(tmp_path / "c")), dtype="float16")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["torch_dtype"] == "float16"


def test_tensors_start_at_multiples_of_their_size(tmp_path):
    arrays = {"a": np.ones(3, np.float16), "b": np.ones(3, np.float32), "c": np.ones(1, np.float64)}
    codes = {"a": "F16", "b": "F32", "c": "F64"}
    groups = [MODULE.Group([(name, codes[name], x.shape)], x.nbytes, lambda x=x: [x]) for name, x in arrays.items()]
    MODULE._write(tmp_path, groups)
    raw = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert all((8 + length + header[name]["data_offsets"][0]) % x.itemsize == 0 for name, x in arrays.items())
    assert all(np.array_equal(x, arrays[name]) for name, x in read(tmp_path).items())


@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"qk_norm": True}, {"value_head": True}, {"width": 18}])
def test_models_trained_here(changes, tmp_path):
    model, params = make(dataclasses.replace(CONFIG, **changes))
    save(tmp_path / "a", model, params)
    other, again = load(tmp_path / "a")
    assert other.config == dataclasses.replace(model.config, value_head=False)
    for (path, x), y in zip(jax.tree.leaves_with_path(without_value_head(params)), jax.tree.leaves(again), strict=True):
        rows = CONFIG.vocab_size if "embedding" in jax.tree_util.keystr(path) else None
        np.testing.assert_array_equal(x[:rows], y[:rows])


def test_the_parameters_are_not_kept_in_host_memory(tmp_path):
    model, params = load(write(tmp_path / "source"), mesh=mesh_of((1, 2, 2)))
    save(tmp_path / "a", model, params)
    assert all(x._npy_value is None for x in jax.tree.leaves(params))


def test_several_files_and_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE, "SHARD", 3000)
    source = write_shards(tmp_path / "source")
    save(tmp_path / "copy", *load(source), like=source)
    assert_same_tensors(source, tmp_path / "copy")
    files = sorted((tmp_path / "copy").glob("*.safetensors"))
    assert [path.name for path in files] == [
        f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))
    ]
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in read(source).values())
    for path in files:
        held = read_one(path)
        assert {name for name, file in index["weight_map"].items() if file == path.name} == set(held)
        assert len(held) == 1 or sum(x.nbytes for x in held.values()) <= 3000
    assert all(np.array_equal(x, y) for x, y in zip(*(jax.tree.leaves(load(f)[1]) for f in (source, tmp_path / "copy")),
                                                    strict=True))  # fmt: skip


def read_one(path: Path) -> dict:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def test_a_stored_copy_of_a_tied_table_and_buffers_are_kept(tmp_path):
    weights = tensors("qwen3") | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    source = write(tmp_path / "source", "qwen3", weights=weights)
    save(tmp_path / "copy", *load(source), like=source)
    assert_same_tensors(source, tmp_path / "copy")


KEPT = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tokenizer.model.v3", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
        "generation_config.json", "LICENSE", "License.txt", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
        "preprocessor_config.json")  # fmt: skip
LEFT = (
    "README.md",
    "modeling_x.py",
    "tokenizer_x.py",
    "pytorch_model.bin",
    "model.safetensors.bak",
    "training_args.bin",
)


def test_the_files_of_like_that_belong_to_a_copy(tmp_path):
    source = write(tmp_path / "source", auto_map={"AutoModel": "modeling_x.Model"})
    for name in KEPT + LEFT:
        (source / name).write_text(name)
    save(tmp_path / "copy", *load(source), like=source)
    written = {path.name for path in (tmp_path / "copy").iterdir()}
    assert written == {*KEPT, "config.json", "model.safetensors"}
    assert all((tmp_path / "copy" / name).read_text() == name for name in KEPT)
    assert "auto_map" not in json.loads((tmp_path / "copy" / "config.json").read_text())


def test_a_link_out_of_like_is_not_copied(tmp_path):
    source = write(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="LICENSE: expected a file in this folder, found a link"):
        save(tmp_path / "copy", *load(source), like=source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret", "source"]


def test_like_must_be_the_same_model(tmp_path):
    source = write(tmp_path / "source")
    model, params = load(write(tmp_path / "other", rope_theta=7.0))
    with pytest.raises(ValueError, match=r"rope_base = 7.0: expected 500.0, as in like ="):
        save(tmp_path / "copy", model, params, like=source)
    shorter = Decoder(dataclasses.replace(load(source)[0].config, max_length=8, remat=True))
    save(tmp_path / "copy", shorter, params, like=source)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save(tmp_path / "copy2", shorter, params, like=tmp_path / "none")


def test_unknown_keys_of_like_are_copied(tmp_path):
    source = write(tmp_path / "source", novelty=3)
    save(tmp_path / "copy", *load(source, ignore=("novelty",)), like=source)
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["novelty"] == 3


def test_a_model_without_an_architecture_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model: softcap = 3.0: expected None"):
        save(tmp_path / "a", *make(dataclasses.replace(CONFIG, softcap=3.0)))
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_unless_empty(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="exists: expected a new folder or an empty one"):
            save(tmp_path / name, *make(CONFIG))
    save(tmp_path / "empty", *make(CONFIG))
    load(tmp_path / "empty")


@pytest.mark.parametrize(("value", "dtype"), [(jnp.nan, None), (1e6, "float16")])
def test_numbers_that_are_not_finite_are_refused(value, dtype, tmp_path):
    model, params = make(CONFIG)
    params = params | {"norm": {"scale": params["norm"]["scale"].at[3].set(value)}}
    with pytest.raises(ValueError, match=r"tensor 'model.norm.weight': expected numbers that are finite in float"):
        save(tmp_path / "a", model, params, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_dtype_that_is_not_stored(tmp_path):
    with pytest.raises(ValueError, match="dtype = 'int8': expected one of float64, float32, float16, bfloat16"):
        save(tmp_path / "a", *make(CONFIG), dtype="int8")


def test_a_disk_that_is_too_small_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(MODULE.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5))
    with pytest.raises(OSError, match=r"expected .* free bytes on its disk") as caught:
        save(tmp_path / "a", *make(CONFIG))
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    model, params = make(CONFIG)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        with pytest.raises(OSError, match=r"expected .* free bytes on its disk"):
            save(tmp_path / "a", model, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


WORKER = """
import sys, time, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from rljax.models import MeshConfig, load, make_mesh, save
import importlib; module = importlib.import_module("rljax.models.huggingface.save")
source, copy = sys.argv[3:]
model, params = load(source, mesh=make_mesh(MeshConfig(data=1, fsdp=2, tensor=2)))
assert not params["embedding"].is_fully_addressable
save(copy, model, params, like=source)

time.sleep(jax.process_index())  # process 0 must not write before process 1 has checked the folder
save(copy + "-local", *load(source), like=source)

def fail(*args):
    raise OSError("broken")

module._write = fail
try:
    save(copy + "-broken", model, params, like=source)
except OSError:
    assert jax.process_index() == 0
else:
    assert jax.process_index() == 1
"""


@pytest.mark.slow
def test_two_processes_write_one_folder(tmp_path):
    source = write(tmp_path / "source", "qwen3_moe")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, address, str(i), source, tmp_path / "copy"], env=environment)
        for i in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    assert_same_tensors(source, tmp_path / "copy")
    assert_same_tensors(source, tmp_path / "copy-local")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "copy-local", "source"]


def test_a_created_model_with_a_large_vocabulary(tmp_path):
    config = TransformerConfig(vocab_size=300, width=16, layers=1, heads=2, kv_heads=2, head_dim=4, mlp=8)
    model, params = create(config, mesh_of((1, 2, 2)), jax.random.key(0))
    save(tmp_path / "a", model, params)
    assert read(tmp_path / "a")["model.embed_tokens.weight"].shape == (300, 16)
