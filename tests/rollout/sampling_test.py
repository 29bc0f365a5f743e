import jax
import numpy as np
import pytest

from rljax.rollout import SamplingConfig, row_keys, sampling

# Jitted, since each operation by itself is a program to compile.
top_k, top_p = jax.jit(sampling.top_k, static_argnums=1), jax.jit(sampling.top_p)
draw, choose = jax.jit(sampling.draw), jax.jit(sampling.choose, static_argnums=2)


def _logits(rows=5, vocabulary=9):
    return np.float32(2 * np.random.default_rng(0).normal(size=(rows, vocabulary)))


def _log_softmax(logits):
    wide = np.float64(logits)
    return np.float32(wide - np.log(np.sum(np.exp(wide), axis=-1, keepdims=True)))


@jax.jit
def _keys(seed, step, rows):
    return row_keys(jax.random.fold_in(jax.random.key(seed), step), rows)


def _kept(logits):
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in np.asarray(logits)]


@pytest.mark.parametrize("k", [1, 3, 9, 50])
def test_top_k_keeps_the_k_largest_as_they_are(k):
    logits = _logits()
    kept = top_k(logits, k)
    assert _kept(kept) == [set(np.argsort(-row)[:k].tolist()) for row in logits]
    np.testing.assert_array_equal(np.where(np.isfinite(kept), kept, logits), logits)


def test_top_k_keeps_exactly_k_of_equals():
    assert _kept(top_k(np.zeros((1, 6), np.float32), 2)) == [{0, 1}]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = _logits()
    for row, kept in zip(np.exp(np.float64(_log_softmax(logits))), _kept(top_p(logits, p)), strict=True):
        order = np.argsort(-row)
        count = 1 + int(np.argmax(np.cumsum(row[order]) >= p))
        assert kept == set(order[:count].tolist())


def test_top_p_includes_the_token_that_crosses():
    logits = np.log(np.float32([[0.5, 0.3, 0.2]]))
    assert _kept(top_p(logits, 0.4)) == [{0}]
    assert _kept(top_p(logits, 0.6)) == [{0, 1}]
    assert _kept(top_p(logits, 0.81)) == [{0, 1, 2}]
    assert _kept(top_p(np.zeros((1, 4), np.float32), 0.5)) == [{0, 1}]  # of equals, the lower ids


def test_a_draw_inverts_the_cumulative_distribution():
    with np.errstate(divide="ignore"):
        log_pi = np.log(np.float32([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]))
    uniform = np.float32([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-23])
    assert draw(np.broadcast_to(log_pi, (6, 6)), uniform).tolist() == [1, 1, 3, 3, 4, 4]


def test_evenly_spaced_numbers_draw_each_token_in_proportion():
    log_pi, n = _log_softmax(_logits(1, 50)), 20_000
    tokens = draw(np.broadcast_to(log_pi, (n, 50)), (np.arange(n, dtype=np.float32) + np.float32(0.5)) / n)
    counts = np.bincount(tokens, minlength=50)
    assert np.abs(counts - n * np.exp(log_pi[0])).max() < 1.5


def test_a_large_vocabulary_never_draws_what_was_cut():
    rng = np.random.default_rng(1)
    logits = np.where(np.arange(50_000) % 7 == 0, rng.normal(size=50_000), -np.inf)
    uniform = np.float32([*rng.random(30, np.float32), 0.0, 1 - 2**-23])
    tokens = np.asarray(draw(np.broadcast_to(_log_softmax(logits), (32, 50_000)), uniform))
    assert (tokens % 7 == 0).all()


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), SamplingConfig(temperature=0.5), SamplingConfig(top_k=4), SamplingConfig(top_p=0.7),
     SamplingConfig(temperature=1.5, top_k=5, top_p=0.8)],
    ids=str,
)  # fmt: skip
def test_choices_follow_the_distribution_they_report(config):
    n, logits = 20_000, _logits(1, 8)
    choices = choose(np.broadcast_to(logits, (n, 8)), _keys(0, 0, np.arange(n)), config)
    token, logp, sampled = map(np.asarray, choices)
    tempered = _log_softmax(logits[0] / config.temperature)
    np.testing.assert_allclose(logp, tempered[token], rtol=1e-6, atol=1e-6)
    counts = np.bincount(token, minlength=8)
    probability = np.zeros(8)
    probability[token] = np.exp(sampled)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    drawn = probability > 0
    chi_square = np.sum((counts[drawn] - n * probability[drawn]) ** 2 / (n * probability[drawn]))
    assert chi_square < 24.3  # 99.9 % point at 7 degrees of freedom
    uniform = np.full(8, n / 8)
    assert np.sum((counts - uniform) ** 2 / uniform) > 1000  # and a draw that ignored the logits would fail
    if config.top_k == 0 and config.top_p == 1:
        np.testing.assert_array_equal(logp, sampled)


def test_truncation_renormalises_the_tempered_distribution():
    logits = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]]))
    choices = choose(logits, _keys(0, 0, np.arange(1)), SamplingConfig(top_k=3, top_p=0.7))
    token, logp, sampled = map(np.asarray, choices)
    kept = {0: 0.4, 1: 0.3}  # of the three, renormalised to 4/9, 3/9, 2/9, two reach 0.7
    assert np.exp(logp[0]) == pytest.approx(kept[int(token[0])], rel=1e-5)
    assert np.exp(sampled[0]) == pytest.approx(kept[int(token[0])] / 0.7, rel=1e-5)


def test_greedy_takes_the_largest_and_reports_temperature_one():
    logits = _logits()
    choices = choose(logits, _keys(0, 0, np.arange(5)), SamplingConfig(temperature=0.0))
    token, logp, sampled = map(np.asarray, choices)
    np.testing.assert_array_equal(token, np.argmax(logits, axis=-1))
    np.testing.assert_allclose(logp, _log_softmax(logits).max(axis=-1), rtol=1e-6)
    assert (sampled == 0).all()


def test_keys_differ_by_row():
    data = jax.random.key_data(_keys(0, 0, np.arange(3)))
    assert len({tuple(row) for row in data.tolist()}) == 3
    np.testing.assert_array_equal(data[1:2], jax.random.key_data(_keys(0, 0, np.arange(1, 2))))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens = 0: expected 1 or more"),
        ("temperature", -1.0, r"temperature = -1.0: expected 0 \(greedy\) or a positive number"),
        ("temperature", float("nan"), "temperature = nan"),
        ("top_k", -3, r"top_k = -3: expected 0 \(off\) or a number of tokens"),
        ("top_p", 0.0, r"top_p = 0.0: expected a probability in \(0, 1\]"),
        ("top_p", 1.5, "top_p = 1.5"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**{field: value})
