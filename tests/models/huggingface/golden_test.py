"""Tiny checkpoints of every family give what `transformers` computed from them (tools/hf_fixtures.py)."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models import load, save
from rljax.rollout import SamplingConfig, generate
from tests.models.huggingface.goldens import FOLDER, NAMES, differences, golden, layouts, loaded, log_softmax, tensors

TOLERANCE = 2e-5  # in nats; `transformers` in float32 is up to 1e-5 from itself in float64
VISIBLE = 1e-3

# A field that a reader of config.json could get wrong, with a plausible wrong value.
FAULTS = [
    ("llama", "rope_base", 10000.0),
    ("llama", "norm_eps", 1e-6),
    ("llama3", "rope_scaling", None),
    ("llama3_old", "rope_scaling", None),
    ("mistral", "rope_base", 10000.0),
    ("qwen2", "rope_base", 10000.0),
    ("qwen3", "rope_base", 10000.0),
    ("qwen3_moe", "renormalize_experts", False),
    ("qwen3_moe", "experts_per_token", 1),
    ("qwen3_moe_old", "renormalize_experts", True),
    ("gemma3", "rope_scaling", None),
    ("gemma3", "rope_base", 30.0),
    ("gemma3", "local_rope_base", 300.0),
    ("gemma3", "window", 6),
    ("gemma3", "local_layers", (True, True, True, False, True)),
    ("gemma3", "query_scale", None),
    ("gemma3", "activation", jax.nn.silu),
    ("gemma3", "norm_shift", 0.0),
    ("gemma3", "embedding_scale", 1.0),
    ("gemma3_old", "rope_scaling", None),
    ("gemma3_old", "local_rope_base", 10000.0),
    ("gemma3_old", "local_layers", (True, True, False)),
    ("gemma3_cap", "softcap", None),
    ("gemma3_vision", "window", 64),
]


def test_there_is_a_fixture_of_every_family():
    kinds = {json.loads((FOLDER / name / "config.json").read_text())["model_type"] for name in NAMES}
    assert kinds == {"llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "gemma3"}


@pytest.mark.parametrize("name", NAMES)
def test_log_probabilities_unpadded_left_padded_and_packed(name):
    np.testing.assert_array_less(differences(*loaded(name), golden(name)), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_shows(name):
    model, params = loaded(name)
    leaves, tree = jax.tree.flatten(params)
    for i, path in enumerate(jax.tree.leaves_with_path(params)):
        zeroed = jax.tree.unflatten(tree, [*leaves[:i], jnp.zeros_like(leaves[i]), *leaves[i + 1 :]])
        assert differences(model, zeroed, golden(name)).max() > VISIBLE, jax.tree_util.keystr(path[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field", "wrong"), FAULTS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_field_of_the_config_shows(name, field, wrong):
    model, params = loaded(name)
    assert getattr(model.config, field) != wrong
    faulty = dataclasses.replace(model, config=dataclasses.replace(model.config, **{field: wrong}))
    assert differences(faulty, params, golden(name)).max() > VISIBLE


@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens(name):
    (model, params), (rows, _, expected) = loaded(name), golden(name)
    tokens, segment_ids = (x[:3] for x in layouts(rows))
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=expected.shape[1])
    program = jax.jit(generate, static_argnames=("model", "config", "stop_ids"))
    samples = program(model, params, tokens, segment_ids, jax.random.key(0), sampling, stop_ids=())
    np.testing.assert_array_equal(samples.tokens[:, tokens.shape[1] :], expected)


@pytest.mark.parametrize("name", NAMES)
def test_saving_what_was_loaded_gives_the_same_tensors(name, tmp_path):
    dtypes = {dtype for dtype, _, _ in tensors(FOLDER / name).values()}
    model, params = load(FOLDER / name, dtype={"F32": "float32", "BF16": "bfloat16"}[dtypes.pop()])
    save(tmp_path / "saved", model, params, like=FOLDER / name)
    assert tensors(tmp_path / "saved") == tensors(FOLDER / name)
    again, same = load(tmp_path / "saved")
    assert again == loaded(name)[0]
    jax.tree.map(np.testing.assert_array_equal, same, loaded(name)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemma3_vision"])
def test_saving_needs_no_folder_to_follow(name, tmp_path):
    model, params = loaded(name)
    save(tmp_path / "saved", model, params)
    again, same = load(tmp_path / "saved")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_the_dtype_of_the_parameters_is_free():
    name = "llama"
    model, params = load(FOLDER / name, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), loaded(name)[1])
    jax.tree.map(np.testing.assert_array_equal, params, rounded)
    found = log_softmax(model, params, *layouts(golden(name).rows))[0]
    assert VISIBLE < np.abs(np.asarray(found) - golden(name).logps[0]).max() < 0.3
