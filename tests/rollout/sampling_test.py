import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.rollout import SamplingConfig, row_keys, step_key
from rljax.rollout.sampling import choose, draw, top_k, top_p


def _logits(rows=5, vocabulary=9):
    return 2 * jax.random.normal(jax.random.key(0), (rows, vocabulary))


def _kept(logits):
    return [set(np.flatnonzero(np.isfinite(row)).tolist()) for row in logits]


@pytest.mark.parametrize("k", [1, 3, 9, 50])
def test_top_k_keeps_the_k_largest_as_they_are(k):
    logits = _logits()
    kept = top_k(logits, k)
    assert _kept(kept) == [set(np.argsort(-row)[:k].tolist()) for row in np.asarray(logits)]
    np.testing.assert_array_equal(np.where(np.isfinite(kept), kept, logits), logits)


def test_top_k_keeps_exactly_k_of_equals():
    assert _kept(top_k(jnp.zeros((1, 6)), 2)) == [{0, 1}]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    logits = _logits()
    for row, kept in zip(np.asarray(jax.nn.softmax(logits), np.float64), _kept(top_p(logits, p)), strict=True):
        order = np.argsort(-row)
        count = 1 + int(np.argmax(np.cumsum(row[order]) >= p))
        assert kept == set(order[:count].tolist())


def test_top_p_includes_the_token_that_crosses():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]))
    assert _kept(top_p(logits, 0.4)) == [{0}]
    assert _kept(top_p(logits, 0.6)) == [{0, 1}]
    assert _kept(top_p(logits, 0.81)) == [{0, 1, 2}]
    assert _kept(top_p(jnp.zeros((1, 4)), 0.5)) == [{0, 1}]  # of equals, the lower ids


def test_a_draw_inverts_the_cumulative_distribution():
    pi = jnp.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniform = jnp.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-23])
    log_pi = jnp.broadcast_to(jnp.log(pi), (6, 6))
    assert draw(log_pi, uniform).tolist() == [1, 1, 3, 3, 4, 4]


def test_evenly_spaced_numbers_draw_each_token_in_proportion():
    log_pi, n = jax.nn.log_softmax(_logits(1, 50)), 20_000
    tokens = draw(jnp.broadcast_to(log_pi, (n, 50)), (jnp.arange(n, dtype=jnp.float32) + 0.5) / n)
    counts = np.bincount(tokens, minlength=50)
    assert np.abs(counts - n * np.exp(log_pi[0])).max() < 1.5


def test_a_large_vocabulary_never_draws_what_was_cut():
    logits = jnp.where(jnp.arange(50_000) % 7 == 0, jax.random.normal(jax.random.key(1), (50_000,)), -jnp.inf)
    uniform = jnp.concatenate([jax.random.uniform(jax.random.key(2), (30,)), jnp.array([0.0, 1 - 2**-23])])
    tokens = draw(jnp.broadcast_to(jax.nn.log_softmax(logits), (32, 50_000)), uniform)
    assert (tokens % 7 == 0).all()


@pytest.mark.parametrize(
    "config",
    [SamplingConfig(), SamplingConfig(temperature=0.5), SamplingConfig(top_k=4), SamplingConfig(top_p=0.7),
     SamplingConfig(temperature=1.5, top_k=5, top_p=0.8)],
    ids=str,
)  # fmt: skip
def test_choices_follow_the_distribution_they_report(config):
    n, logits = 20_000, _logits(1, 8)
    keys = row_keys(step_key(0, 0), jnp.arange(n))
    token, logp, sampled = choose(jnp.broadcast_to(logits, (n, 8)), keys, config)
    tempered = jax.nn.log_softmax(logits[0] / config.temperature)
    np.testing.assert_allclose(logp, tempered[token], rtol=1e-6, atol=1e-6)
    counts = np.bincount(token, minlength=8)
    probability = np.zeros(8)
    probability[np.asarray(token)] = np.exp(sampled)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    drawn = probability > 0
    chi_square = np.sum((counts[drawn] - n * probability[drawn]) ** 2 / (n * probability[drawn]))
    assert chi_square < 24.3  # 99.9 % point at 7 degrees of freedom
    uniform = np.full(8, n / 8)
    assert np.sum((counts - uniform) ** 2 / uniform) > 1000  # and a draw that ignored the logits would fail
    if config.top_k == 0 and config.top_p == 1:
        np.testing.assert_array_equal(logp, sampled)


def test_truncation_renormalises_the_tempered_distribution():
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    token, logp, sampled = choose(logits, row_keys(step_key(0, 0), jnp.arange(1)), SamplingConfig(top_k=3, top_p=0.7))
    kept = {0: 0.4, 1: 0.3}  # of the three, renormalised to 4/9, 3/9, 2/9, two reach 0.7
    assert float(jnp.exp(logp[0])) == pytest.approx(kept[int(token[0])], rel=1e-5)
    assert float(jnp.exp(sampled[0])) == pytest.approx(kept[int(token[0])] / 0.7, rel=1e-5)


def test_greedy_takes_the_largest_and_reports_temperature_one():
    logits = _logits()
    token, logp, sampled = choose(logits, row_keys(step_key(0, 0), jnp.arange(5)), SamplingConfig(temperature=0.0))
    np.testing.assert_array_equal(token, jnp.argmax(logits, axis=-1))
    np.testing.assert_allclose(logp, jax.nn.log_softmax(logits).max(axis=-1), rtol=1e-6)
    assert (sampled == 0).all()


def test_keys_differ_by_seed_step_and_row():
    keys = [row_keys(step_key(seed, step), jnp.arange(3)) for seed in (0, 1) for step in (0, 1)]
    data = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len({tuple(row) for row in data.tolist()}) == 12
    np.testing.assert_array_equal(data[:3], jax.random.key_data(row_keys(step_key(0, 0), jnp.arange(3))))


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
