"""Random checkpoints of every family, other than the fixtures, compared with `transformers` (make test-hf)."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rljax.models import load, save
from rljax.rollout import SamplingConfig, generate
from tests.models.huggingface.goldens import Golden, differences, layouts
from tools import hf_fixtures
from tools.hf_fixtures import FAMILIES, LENGTHS

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOLERANCE = 2e-5  # in nats
SIZES = [
    {"vocab_size": 131, "hidden_size": 32, "intermediate_size": 40, "num_key_value_heads": 1},
    {"vocab_size": 256, "hidden_size": 40, "head_dim": 10, "num_attention_heads": 2, "max_position_embeddings": 128},
]
greedily = jax.jit(generate, static_argnames=("model", "config", "stop_ids"))
CASES = [(name, size) for name in FAMILIES for size in range(len(SIZES))]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}", scope="module")
def checkpoint(request, tmp_path_factory):
    """(folder, seed, vocabulary) of a random checkpoint."""
    name, size = request.param
    folder, seed = tmp_path_factory.mktemp(name), 1000 + CASES.index(request.param)
    hf_fixtures.write(folder / "model", FAMILIES[name], seed, **SIZES[size])
    return folder / "model", seed, SIZES[size]["vocab_size"]


def _golden(folder, seed, vocab, padded=False) -> Golden:
    theirs, rows = hf_fixtures.read(folder), hf_fixtures.rows(seed, vocab)
    compute = hf_fixtures.padded_log_probabilities if padded else hf_fixtures.log_probabilities
    return Golden(rows, compute(theirs, rows), hf_fixtures.greedy(theirs, rows))


def test_log_probabilities(checkpoint):
    model, params = load(checkpoint[0])
    for padded in (False, True):
        np.testing.assert_array_less(differences(model, params, _golden(*checkpoint, padded)), TOLERANCE)


def test_greedy_tokens(checkpoint):
    folder, seed, vocab = checkpoint
    model, params = load(folder)
    theirs = hf_fixtures.read(folder)
    rows = hf_fixtures.rows(seed, vocab)
    expected = hf_fixtures.greedy(theirs, rows, 12)
    tokens, segment_ids = (x[:3] for x in layouts(rows))
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=12)
    found = greedily(model, params, tokens, segment_ids, jax.random.key(0), sampling, stop_ids=())
    for row, (ours, other) in enumerate(zip(np.asarray(found.tokens[:, LENGTHS[0] :]), expected, strict=True)):
        same = np.cumprod(ours == other).sum()  # tokens before the first that differs, which must be nearly a tie
        if same < len(other):
            gap = hf_fixtures.margin(theirs, [np.concatenate([rows[row], other[:same]])], other[None, same : same + 1])
            assert gap < 1e-4, (row, same, gap)


def test_transformers_reads_what_we_save(checkpoint, tmp_path):
    folder, seed, vocab = checkpoint
    model, params = load(folder)
    trained = jax.tree.map(lambda x: x * 1.01 + 0.001, params)
    save(tmp_path / "same", model, params, like=folder)
    save(tmp_path / "trained", model, trained, like=folder)
    rows = hf_fixtures.rows(seed, vocab)
    before, same = (hf_fixtures.log_probabilities(hf_fixtures.read(x), rows) for x in (folder, tmp_path / "same"))
    assert hf_fixtures.difference(before, same) == 0
    np.testing.assert_array_less(differences(model, trained, _golden(tmp_path / "trained", seed, vocab)), TOLERANCE)


def test_transformers_reads_what_we_save_without_a_folder_to_follow(checkpoint, tmp_path):
    folder, seed, vocab = checkpoint
    if "vision_config" in (folder / "config.json").read_text():
        pytest.skip("the vision tower is copied from a folder")
    model, params = load(folder)
    save(tmp_path / "saved", model, params)
    rows = hf_fixtures.rows(seed, vocab)
    before, after = (hf_fixtures.log_probabilities(hf_fixtures.read(x), rows) for x in (folder, tmp_path / "saved"))
    assert hf_fixtures.difference(before, after) < 1e-6


def test_gemma_3_has_no_soft_cap_of_attention(tmp_path):
    capped = dataclasses.replace(FAMILIES["gemma3"], rewrite=lambda config: config | {"attn_logit_softcapping": 1.0})
    hf_fixtures.write(tmp_path / "capped", capped, 0)
    with pytest.warns(UserWarning, match="attn_logit_softcapping = 1.0 has no effect"):
        model, params = load(tmp_path / "capped")
    golden = _golden(tmp_path / "capped", 0, hf_fixtures.SIZES["vocab_size"])
    np.testing.assert_array_less(differences(model, params, golden), TOLERANCE)
