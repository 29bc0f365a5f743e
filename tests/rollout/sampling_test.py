import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.rollout import SamplingConfig, row_keys, sampling

# Jitted, because each operation outside jit compiles its own program.
top_k, top_p = jax.jit(sampling.top_k, static_argnums=1), jax.jit(sampling.top_p)
draw, choose = jax.jit(sampling.draw), jax.jit(sampling.choose, static_argnums=2)
weights = jax.jit(sampling._weights)


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
    assert _kept(top_p(np.zeros((1, 4), np.float32), 0.5)) == [{0, 1}]  # ties keep the lower ids


def _bits(fraction):
    return np.uint32(np.float64(fraction) * 2**32)


def _drawn(log_pi):
    """P(token) under `draw`, [B, V] float64, from the integer weights of both levels."""
    (rows, vocabulary), size = log_pi.shape, min(sampling.BLOCK, log_pi.shape[1])
    pi = np.pad(np.exp(log_pi), ((0, 0), (0, -vocabulary % size))).reshape(rows, -1, size)
    blocks = np.float64(weights(pi.sum(axis=-1)))
    inside = np.float64(weights(np.where(pi.sum(axis=-1, keepdims=True) > 0, pi, 1).reshape(-1, size)))
    return (blocks[..., None] / 2**31 * inside.reshape(pi.shape) / 2**31).reshape(rows, -1)[:, :vocabulary]


def test_weights_are_the_shares_of_2_to_the_31():
    assert weights(np.float32([[3, 0, 1, 4], [0, 0, 0, 5]])).tolist() == [
        [3 * 2**28, 0, 2**28, 2**30],
        [0, 0, 0, 2**31],
    ]
    thirds = np.int64(weights(np.float32([[1, 1, 1, 0], [0, 1, 2, 0]])))
    np.testing.assert_allclose(thirds, 2**31 * np.array([[1, 1, 1, 0], [0, 1, 2, 0]]) / 3, rtol=1e-7)
    assert thirds.sum(axis=1).tolist() == [2**31, 2**31]


def test_a_draw_inverts_the_cumulative_distribution():
    with np.errstate(divide="ignore"):
        log_pi = np.log(np.float32([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]))
    bits = np.stack([np.zeros(6, np.uint32), _bits([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-32])], axis=1)
    assert draw(np.broadcast_to(log_pi, (6, 6)), bits).tolist() == [1, 1, 3, 3, 4, 4]


def test_a_block_is_drawn_first_and_then_a_token_of_it():
    size = sampling.BLOCK
    log_pi = np.full(2 * size + 3, -np.inf, np.float32)
    log_pi[[5, size, size + 1, 2 * size + 2]] = np.log(np.float32([0.25, 0.125, 0.125, 0.5]))
    first, second = _bits([0.24, 0.25, 0.49, 0.5, 0.99]), _bits([0.9, 0.49, 0.5, 0.0, 0.9])
    tokens = draw(np.broadcast_to(log_pi, (5, len(log_pi))), np.stack([first, second], axis=1))
    assert tokens.tolist() == [5, size, size + 1, 2 * size + 2, 2 * size + 2]


def test_evenly_spaced_numbers_draw_each_token_in_proportion():
    log_pi, n = _log_softmax(_logits(1, 50)), 20_000
    bits = np.stack([np.zeros(n, np.uint32), _bits((np.arange(n) + 0.5) / n)], axis=1)
    counts = np.bincount(draw(np.broadcast_to(log_pi, (n, 50)), bits), minlength=50)
    assert np.abs(counts - n * np.exp(log_pi[0])).max() < 1.5


def test_every_token_of_a_long_tail_is_drawn_as_often_as_it_should():
    """151,936 tokens; one token has 99 % of the probability."""
    rng, vocabulary = np.random.default_rng(1), 151_936
    tail = np.exp(rng.normal(size=(2, vocabulary)) * [[0.0], [1.0]])
    tail[:, 70_000] = 0
    pi = 0.01 * tail / tail.sum(axis=1, keepdims=True)
    pi[:, 70_000] = 0.99
    log_pi = np.log(pi).astype(np.float32)
    exact = np.exp(np.float64(log_pi))
    exact /= exact.sum(axis=1, keepdims=True)
    found = _drawn(log_pi)
    assert (found > 0).all()
    assert np.abs(found - exact).sum(axis=1).max() / 2 < 2e-7
    # Bits in the middle of a token's share select that token.
    tokens = np.append(rng.integers(0, vocabulary, 15), 70_000)
    size = sampling.BLOCK
    sums = np.pad(found[1], (0, -vocabulary % size)).reshape(-1, size)
    blocks, inside = sums.sum(axis=1), sums[tokens // size]
    middle = np.cumsum(blocks)[tokens // size] - blocks[tokens // size] / 2
    rows = np.arange(len(tokens))
    within = (np.cumsum(inside, axis=1)[rows, tokens % size] - inside[rows, tokens % size] / 2) / inside.sum(axis=1)
    bits = np.stack([_bits(middle), _bits(within)], axis=1)
    assert draw(np.broadcast_to(log_pi[1], (len(tokens), vocabulary)), bits).tolist() == tokens.tolist()


def test_one_number_of_float32_would_not_reach_the_tail():
    """A float32 cumulative sum, inverted at all 2²³ values of `jax.random.uniform`, misses over 40 % of the tokens."""
    pi = np.full(151_936, np.float32(0.01 / 151_935))
    pi[0] = 0.99
    reached = np.asarray(jax.jit(jnp.cumsum)(pi))
    first = np.ceil(np.append(0, reached[:-1]) / reached[-1] * 2**23)
    last = np.ceil(reached / reached[-1] * 2**23)
    assert (first == last).mean() > 0.4


def test_a_large_vocabulary_never_draws_what_was_cut():
    rng = np.random.default_rng(1)
    logits = np.where(np.arange(50_000) % 7 == 0, rng.normal(size=50_000), -np.inf)
    logits[10_000:20_000] = -np.inf
    bits = rng.integers(0, 2**32, (34, 2), np.uint32)
    bits[:4] = np.uint32(2**32 - 1) * np.uint32([[0, 0], [0, 1], [1, 0], [1, 1]])
    tokens = np.asarray(draw(np.broadcast_to(_log_softmax(logits), (34, 50_000)), bits))
    assert (tokens % 7 == 0).all()
    assert np.isfinite(logits[tokens]).all()


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
    assert chi_square < 24.3  # 99.9 % quantile, 7 degrees of freedom
    uniform = np.full(8, n / 8)
    assert np.sum((counts - uniform) ** 2 / uniform) > 1000  # a draw that ignores the logits would fail
    if config.top_k == 0 and config.top_p == 1:
        np.testing.assert_array_equal(logp, sampled)


def test_truncation_renormalizes_the_tempered_distribution():
    logits = np.log(np.float32([[0.4, 0.3, 0.2, 0.1]]))
    choices = choose(logits, _keys(0, 0, np.arange(1)), SamplingConfig(top_k=3, top_p=0.7))
    token, logp, sampled = map(np.asarray, choices)
    kept = {0: 0.4, 1: 0.3}  # top-k renormalizes to 4/9, 3/9, 2/9; the first two reach 0.7
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
        ("top_k", -3, r"top_k = -3: expected 0 \(disabled\) or a number of tokens"),
        ("top_p", 0.0, r"top_p = 0.0: expected a probability in \(0, 1\]"),
        ("top_p", 1.5, "top_p = 1.5"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**{field: value})
