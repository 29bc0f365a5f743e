"""Tests of the converter tools/smollm2.py that need neither the GGUF file nor the package `gguf`."""

import numpy as np
import pytest

from tools import smollm2

TENSORS = {"model.norm.weight": np.array([1.0, 2.0], np.float32), "model.embed_tokens.weight": np.eye(2, dtype="f")}
NORM = "b9c80b5adeca450753a16950c3cc655d271f7bef7a485bc83f112b72fef21d37"  # of the bytes 00 00 80 3f 00 00 00 40


def test_rotary_pairs_become_halves():
    rows = np.array([[0], [1], [2], [3], [10], [11], [12], [13]])  # two heads of two pairs
    assert smollm2.rotary_halves(rows, heads=2).ravel().tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


@pytest.mark.parametrize(
    ("gguf", "expected"),
    [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"),
    ],
)
def test_names(gguf, expected):
    assert smollm2.hugging_face_name(gguf) == expected


@pytest.mark.parametrize("name", ["output.weight", "blk.0.attn_q.bias", "blk.0.ffn_gate_exps.weight"])
def test_an_unknown_tensor_is_an_error(name):
    with pytest.raises(ValueError, match=f"tensor = {name}: expected"):
        smollm2.hugging_face_name(name)


def test_digests_survive_a_file(tmp_path):
    digests = smollm2.digests_of(TENSORS)
    assert digests["model.norm.weight"] == NORM
    smollm2.write_digests(tmp_path / "digests", digests)
    assert smollm2.read_digests(tmp_path / "digests") == digests


@pytest.mark.parametrize("change", [{"model.norm.weight": np.array([1.0, 2.5], np.float32)}, {"new": np.ones(1)}])
def test_a_wrong_tensor_is_named(change):
    expected = smollm2.digests_of(TENSORS)
    with pytest.raises(ValueError, match=f"{next(iter(change))} = SHA-256 .*: expected"):
        smollm2.check_digests(smollm2.digests_of(TENSORS | change), expected)


def test_a_missing_tensor_is_named():
    expected = smollm2.digests_of(TENSORS)
    with pytest.raises(ValueError, match=r"model\.norm\.weight = SHA-256 None: expected"):
        smollm2.check_digests({k: v for k, v in expected.items() if "norm" not in k}, expected)


def test_the_digests_are_those_of_30_layers():
    names = set(smollm2.read_digests(smollm2.DIGESTS))
    layers = {f"model.layers.{i}.{part}.weight" for i in range(30) for part in smollm2.LAYER.values()}
    assert names == layers | {"model.embed_tokens.weight", "model.norm.weight"}


def test_a_mismatch_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "read", lambda file: ({}, TENSORS))
    with pytest.raises(ValueError, match="SHA-256"):
        smollm2.main(["--gguf", "model.gguf", "--folder", str(tmp_path / "model")])
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "config", dict)
    monkeypatch.setattr(smollm2, "token_ids", dict)
    monkeypatch.setattr(smollm2, "tokenizer", dict)
    monkeypatch.setattr(smollm2, "tokenizer_config", lambda metadata: {"chat_template": object()})  # not JSON
    with pytest.raises(TypeError, match="not JSON serializable"):
        smollm2.write(tmp_path / "models" / "model", {}, TENSORS, notice="")
    assert not list((tmp_path / "models").iterdir())


def test_a_folder_is_written_whole_and_once(tmp_path):
    folder = tmp_path / "models" / "model"
    with smollm2.written_whole(folder) as draft:
        (draft / "config.json").write_text("{}")
        assert not folder.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")] == ["models/model/config.json"]
    again = smollm2.written_whole(folder)
    with pytest.raises(ValueError, match=r"folder = .*: expected a path that does not exist"):
        again.__enter__()
