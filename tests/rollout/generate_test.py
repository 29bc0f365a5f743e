import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import Decoder
from rljax.rollout import SamplingConfig, check_left_padded, generate
from tests.models.small import CONFIG, VARIANTS, hidden_of, log_softmax_at, make, mesh_of, some_tokens

SAMPLING = SamplingConfig(max_new_tokens=10)

program = jax.jit(generate, static_argnames=("model", "config", "stop_ids", "banned"))


@functools.cache
def _key(step=5):
    return jax.random.fold_in(jax.random.key(3), step)


def _prompts(rows=8, columns=6, pad=0):
    lengths = 1 + np.arange(rows) % columns
    ids = (np.arange(columns) >= columns - lengths[:, None]).astype(np.int32)
    tokens = some_tokens((rows, columns)) * ids
    widen = ((0, 0), (pad, 0))
    return np.pad(tokens, widen), np.pad(ids, widen)


def _run(model, params, prompts, config=SAMPLING, step=5, stop_ids=(1,), **others):
    samples = program(model, params, *prompts, _key(step), config, stop_ids=stop_ids, **others)
    return jax.tree.map(np.asarray, samples)


def test_old_logp_is_what_training_recomputes():
    model, params = make()
    for temperature in (1.0, 0.6):
        samples = _run(model, params, _prompts(), dataclasses.replace(SAMPLING, temperature=temperature))
        recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids, temperature)
        assert samples.mask.sum() > 30
        np.testing.assert_allclose(samples.old_logp, np.where(samples.mask, recomputed, 0), atol=1e-5)
        np.testing.assert_array_equal(samples.old_logp, samples.sampled_logp)
        assert np.where(samples.mask, samples.old_logp, -1).max() < 0


def test_old_logp_is_what_training_recomputes_with_windows_soft_caps_and_experts():
    for name in ("gemma", "experts"):
        model, params = make(VARIANTS[name])
        samples = _run(model, params, _prompts(), dataclasses.replace(SAMPLING, temperature=0.6))
        recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids, 0.6)
        np.testing.assert_allclose(samples.old_logp, np.where(samples.mask, recomputed, 0), atol=3e-5)
    uncapped = Decoder(dataclasses.replace(VARIANTS["gemma"], softcap=None))
    model, params = make(VARIANTS["gemma"])
    samples = _run(model, params, _prompts())
    other = log_softmax_at(uncapped, params, samples.tokens, samples.segment_ids)
    assert np.abs(np.where(samples.mask, samples.old_logp - other, 0)).max() > 1e-2


class _LatePosition(Decoder):
    def decode(self, params, token, cache):
        return super().decode(params, token, cache._replace(position=cache.position + 1))


def test_a_decoder_whose_positions_are_off_by_one_shows():
    model, params = make()
    samples = _run(_LatePosition(CONFIG), params, _prompts())
    recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids)
    assert np.abs(np.where(samples.mask, samples.old_logp - recomputed, 0)).max() > 1e-2


def test_rows_are_pad_prompt_completion_pad():
    model, params = make()
    prompts, ids = _prompts()
    samples = _run(model, params, (prompts, ids))
    np.testing.assert_array_equal(samples.tokens[:, :6], prompts)
    assert not samples.mask[:, :6].any()
    columns = samples.tokens, samples.mask, samples.segment_ids, samples.finished
    for row, mask, segment, finished in zip(*columns, strict=True):
        completion = row[6:][mask[6:]]
        n = completion.size
        assert 1 <= n <= 10
        assert mask[6 : 6 + n].all()
        assert not mask[6 + n :].any()
        assert (1 in completion) == finished  # eos, if present, is the last token of the completion
        assert 1 not in completion[:-1]
        assert finished or n == 10
        assert (row[6 + n :] == 0).all()
        assert (segment[6:] == mask[6:]).all()
    assert 0 < samples.finished.sum() < 8
    assert (np.where(samples.mask, 0, samples.old_logp) == 0).all()


def test_left_padding_changes_no_completion():
    model, params = make()
    plain, padded = (_run(model, params, _prompts(pad=pad)) for pad in (0, 7))
    np.testing.assert_array_equal(padded.tokens[:, 7:], plain.tokens)
    np.testing.assert_array_equal(padded.mask[:, 7:], plain.mask)
    np.testing.assert_allclose(padded.old_logp[:, 7:], plain.old_logp, atol=1e-5)


def test_the_rest_of_the_batch_changes_no_completion():
    model, params = make()
    prompts = _prompts()
    whole = _run(model, params, prompts)
    few = [x[3:5] for x in prompts]
    part = _run(model, params, few, rows=np.int32([3, 4]))
    np.testing.assert_array_equal(part.tokens, whole.tokens[3:5])
    other = _run(model, params, few, rows=np.int32([4, 3]))
    assert (other.tokens != part.tokens).any()


def test_equal_prompts_and_other_keys_draw_anew():
    model, params = make()
    prompts = [x[5:6].repeat(8, axis=0) for x in _prompts()]
    first, again, later = (_run(model, params, prompts, step=step) for step in (5, 5, 6))
    assert len({tuple(row) for row in first.tokens.tolist()}) > 2
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != later.tokens).any()


def test_a_budget_ends_a_row_unfinished():
    model, params = make()
    budget = np.int32([0, 1, 2, 3, 4, 20, 10, 10])
    samples = _run(model, params, _prompts(), budget=budget, stop_ids=())
    assert samples.mask.sum(axis=1).tolist() == [0, 1, 2, 3, 4, 10, 10, 10]
    assert not samples.finished.any()
    free = _run(model, params, _prompts(), budget=np.full(8, 10, np.int32), stop_ids=())
    np.testing.assert_array_equal(samples.tokens, np.where(samples.mask | (samples.segment_ids != 0), free.tokens, 0))
    without = _run(model, params, _prompts())
    np.testing.assert_array_equal(free.tokens[without.mask], without.tokens[without.mask])
    np.testing.assert_allclose(free.old_logp[without.mask], without.old_logp[without.mask], atol=1e-5)


class _Counting(Decoder):
    def decode(self, params, token, cache):
        jax.debug.callback(STEPS.append, cache.index, ordered=True)
        return super().decode(params, token, cache)


STEPS: list = []
STOPS = 1, 4, 7


def test_several_stop_tokens():
    _, params = make()
    samples = _run(_Counting(CONFIG), params, _prompts(), stop_ids=STOPS)
    last = [row[mask][-1] for row, mask in zip(samples.tokens, samples.mask, strict=True)]
    np.testing.assert_array_equal(samples.finished, np.isin(last, STOPS))
    assert samples.finished.sum() > 4


def test_the_loop_ends_when_every_row_has_stopped():
    _, params = make()
    STEPS.clear()
    samples = _run(_Counting(CONFIG), params, _prompts(), stop_ids=STOPS, step=9)
    jax.effects_barrier()
    longest = int(samples.mask.sum(axis=1).max())
    assert longest < 10
    assert len(STEPS) == longest - 1


def test_truncation_reports_both_log_probabilities():
    model, params = make()
    samples = _run(model, params, _prompts(), dataclasses.replace(SAMPLING, top_k=3, top_p=0.9))
    recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids)
    np.testing.assert_allclose(samples.old_logp, np.where(samples.mask, recomputed, 0), atol=1e-5)
    gain = (samples.sampled_logp - samples.old_logp)[samples.mask]
    assert (gain >= -1e-6).all()
    assert gain.max() > 0.05


def test_greedy_follows_the_likeliest_token():
    model, params = make()
    samples = _run(model, params, _prompts(), dataclasses.replace(SAMPLING, temperature=0.0))
    hidden = hidden_of(model, params, samples.tokens, samples.segment_ids)
    likeliest = np.argmax(np.einsum("btd,vd->btv", hidden, model.unembedding(params)), axis=-1)
    np.testing.assert_array_equal(samples.tokens[:, 1:][samples.mask[:, 1:]], likeliest[:, :-1][samples.mask[:, 1:]])
    recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids)
    np.testing.assert_allclose(samples.old_logp, np.where(samples.mask, recomputed, 0), atol=1e-5)
    assert (samples.sampled_logp == 0).all()


BANNED = 0, 3, 5


@pytest.mark.parametrize("change", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}], ids=str)
def test_banned_tokens_are_never_sampled_and_have_no_mass(change):
    model, params = make()
    prompts, config = [x.repeat(4, axis=0) for x in _prompts()], dataclasses.replace(SAMPLING, **change)
    samples = _run(model, params, prompts, config, banned=BANNED)
    assert not np.isin(samples.tokens[samples.mask], BANNED).any()
    hidden = np.float64(hidden_of(model, params, samples.tokens, samples.segment_ids))
    logits = np.einsum("btd,vd->btv", hidden, model.unembedding(params)) / (config.temperature or 1)
    logits[..., BANNED] = -np.inf
    log_pi = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.take_along_axis(log_pi[:, :-1], samples.tokens[:, 1:, None], axis=-1)[..., 0]
    found, mask = samples.old_logp[:, 1:], samples.mask[:, 1:]
    assert mask.sum() > 100
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)  # float32 error divided by τ = 0.7
    if config.temperature == 0:
        np.testing.assert_array_equal(samples.tokens[:, 1:][mask], log_pi[:, :-1].argmax(axis=-1)[mask])


RIGHT_PADDED, EMPTY = np.int32([[0, 1, 1], [1, 1, 0]]), np.int32([[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    ("ids", "row"), [(RIGHT_PADDED, [1, 1, 0]), (EMPTY, [0, 0, 0]), (np.int32([[0, 1, 1], [1, 0, 1]]), [1, 0, 1])]
)
def test_padding_that_is_not_on_the_left_is_refused(ids, row):
    model, params = make()
    at = ids.tolist().index(row)
    with pytest.raises(ValueError, match=rf"segment_ids\[{at}\] = \[{', '.join(map(str, row))}\]: expected padding"):
        generate(model, params, np.ones_like(ids), ids, _key(), SAMPLING, stop_ids=(1,))
    with pytest.raises(ValueError, match=rf"segment_ids\[{at}\]"):
        check_left_padded(jnp.asarray(ids))


def test_bfloat16_reports_float32_log_probabilities_close_to_the_forward_pass():
    model, params = make(dataclasses.replace(CONFIG, dtype="bfloat16"))
    samples = _run(model, params, _prompts())
    recomputed = log_softmax_at(model, params, samples.tokens, samples.segment_ids)
    assert samples.old_logp.dtype == jnp.float32
    assert np.abs(np.where(samples.mask, samples.old_logp - recomputed, 0)).mean() < 0.02


@functools.cache
def _on_mesh(shape):
    mesh, (model, params) = mesh_of(shape), make()
    params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh)))
    prompts = jax.device_put(_prompts(), NamedSharding(mesh, P(("data", "fsdp"))))
    return program(model, params, *prompts, _key(), SAMPLING, stop_ids=(1,))


@pytest.mark.parametrize(
    ("shape", "rows"), [pytest.param((8, 1, 1), 1, marks=pytest.mark.slow), ((2, 2, 2), 2)], ids=str
)
def test_every_mesh_samples_the_same(shape, rows):
    expected, other = _on_mesh((1, 1, 1)), _on_mesh(shape)
    assert other.tokens.addressable_shards[0].data.shape[0] == rows
    np.testing.assert_array_equal(other.tokens, expected.tokens)
    np.testing.assert_allclose(other.old_logp, expected.old_logp, atol=1e-5)


@pytest.mark.parametrize(
    ("columns", "others", "message"),
    [
        (15, {}, "prompts of 15 columns and max_new_tokens = 10 make rows of 25 tokens: expected at most "
         "max_length = 24 of the model"),
        (6, {"stop_ids": (1, 11)}, r"stop_ids = \(1, 11\): expected ids in \[0, vocab_size = 11\)"),
        (6, {"banned": (0, -1)}, r"banned = \(0, -1\): expected ids in \[0, vocab_size = 11\)"),
        (6, {"banned": (0, 1)}, r"banned = \(0, 1\): expected ids that are not in stop_ids = \(1,\), and not all"),
        (6, {"banned": tuple(range(11)), "stop_ids": ()}, "and not all tokens"),
        (6, {"budget": np.ones(3, np.int32)}, r"budget has shape \(3,\) and dtype int32: expected \(8,\) and an int"),
        (6, {"rows": np.ones(8, np.float32)}, r"rows has shape \(8,\) and dtype float32: expected \(8,\) and an int"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_named(columns, others, message):
    model, params = make()
    with pytest.raises(ValueError, match=message):
        generate(model, params, *_prompts(columns=columns), _key(), SAMPLING, **{"stop_ids": (1,), **others})
