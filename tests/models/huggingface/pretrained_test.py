import dataclasses
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import rljax.text
from rljax.models import Decoder, PretrainedModel, ShardingRules, load
from tests.models.huggingface.folders import V, write
from tests.models.small import mesh_of

RULES = ShardingRules()
MESH = mesh_of((1, 2, 2))


def build(config: PretrainedModel, vocab_size=V, value_head=False) -> Decoder:
    return config.build(vocab_size=vocab_size, value_head=value_head, rules=RULES)


def test_the_folder_is_not_read_before_the_model_is_built(tmp_path):
    config = PretrainedModel(str(tmp_path / "none"), max_length=16)
    assert config.folder == tmp_path / "none"
    assert dataclasses.replace(config, folder=Path("other")).folder == Path("other")
    for call in (lambda: build(config), config.tokenizer, lambda: config.parameters(None, MESH, None)):
        with pytest.raises(FileNotFoundError, match=r"does not exist: .*`hf download ORG/NAME --local-dir"):
            call()


def test_the_model_of_a_folder(tmp_path):
    config = PretrainedModel(write(tmp_path), max_length=16, dtype="bfloat16", remat=True)
    model = build(config, vocab_size=V - 5)
    expected = dataclasses.replace(load(tmp_path)[0].config, max_length=16, dtype="bfloat16", remat=True)
    assert model == Decoder(expected, RULES)
    assert (model.vocab_size, model.config.param_dtype) == (V, "float32")


def test_the_parameters_of_a_folder(tmp_path, monkeypatch):
    config = PretrainedModel(write(tmp_path), max_length=16, param_dtype="bfloat16")
    model = build(config)
    monkeypatch.setattr(Decoder, "initialize", lambda *a: pytest.fail("random parameters were made"))
    params = config.parameters(model, MESH, jax.random.key(0))
    expected = load(tmp_path, dtype="bfloat16")[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, params, expected))
    assert params["embedding"].sharding.mesh == MESH
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}


def test_a_value_head_is_zero(tmp_path):
    config = PretrainedModel(write(tmp_path), max_length=16)
    model = build(config, value_head=True)
    params = config.parameters(model, MESH, jax.random.key(0))
    assert (params["value"].shape, params["value_bias"].shape) == ((16,), ())
    assert not np.any(params["value"])
    assert not np.any(params["value_bias"])
    hidden = np.ones((1, 2, 16), np.float32)
    np.testing.assert_array_equal(model.values(params, hidden), np.zeros((1, 2)))


def test_a_tokenizer_larger_than_the_table(tmp_path, monkeypatch):
    text = types.SimpleNamespace(vocab_size=V + 1, stop_ids=(1,), decode=lambda ids: "a")
    monkeypatch.setattr(rljax.text, "load_tokenizer", lambda folder: text)
    with pytest.raises(ValueError, match=f"vocab_size = {V + 1}: expected at most {V}, the rows of the embedding"):
        build(PretrainedModel(write(tmp_path), max_length=16), vocab_size=V + 1)


def test_a_control_token_may_have_no_row(tmp_path, monkeypatch):
    image = types.SimpleNamespace(vocab_size=V + 1, stop_ids=(1,), decode=lambda ids: "")
    monkeypatch.setattr(rljax.text, "load_tokenizer", lambda folder: image)
    assert build(PretrainedModel(write(tmp_path), max_length=16), vocab_size=V + 1).vocab_size == V


def test_a_length_beyond_the_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="max_length = 2048: expected at most 32, max_position_embeddings in"):
        build(PretrainedModel(write(tmp_path)))
    with pytest.raises(ValueError, match="max_length = 0: expected 1 or more"):
        PretrainedModel(tmp_path, max_length=0)


def test_keys_to_ignore(tmp_path):
    write(tmp_path, novelty=1)
    with pytest.raises(ValueError, match=r"--model.ignore novelty"):
        build(PretrainedModel(tmp_path, max_length=16))
    build(PretrainedModel(tmp_path, max_length=16, ignore=("novelty",)))


def test_the_tokenizer_is_loaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rljax.text, "load_tokenizer", lambda folder: [folder], raising=False)
    config = PretrainedModel(write(tmp_path))
    assert config.tokenizer() == [tmp_path]
    assert config.tokenizer() is config.tokenizer()


def test_dtypes_are_checked(tmp_path):
    for name in ("dtype", "param_dtype"):
        with pytest.raises(ValueError, match=f"{name} = 'int8': expected one of float32"):
            build(PretrainedModel(write(tmp_path), max_length=16, **{name: "int8"}))
