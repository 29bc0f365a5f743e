from functools import partial

import jax
import numpy as np
import pytest

from rljax import Batch, metrics, ratio
from tests import papers

CLIP = partial(ratio.clip, low=0.2, high=0.2)


@jax.jit
def policy(logp, batch):
    sums = metrics.policy_sums(logp, batch, CLIP)
    return sums, metrics.policy_summary(sums)


def test_worked_summary():
    logp = np.log([[1.5, 1.1, 0.5, 1.5], [1.5, 1.0, 0.5, np.nan]])
    advantages = np.array([[1.0] * 4, [-1.0] * 4])
    weights = np.array([[0.1, 0.2, 0.3, 0.0], [0.1, 0.1, 0.2, 5.0]])
    mask = np.arange(8).reshape(2, 4) < 7
    batch = Batch(mask=mask, old_logp=np.zeros((2, 4)), advantages=advantages, weights=weights)
    _, summary = policy(logp, batch)
    r = np.array([1.5, 1.1, 0.5, 1.5, 1.5, 1.0, 0.5])
    np.testing.assert_allclose(summary["clip_share"], (0.1 + 0.2) / 1.0, rtol=1e-6)  # r = 1.5, r = 0.5
    np.testing.assert_allclose(summary["clip_share_positive"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(summary["clip_share_negative"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(summary["kl"], np.mean(r - 1 - np.log(r)), rtol=1e-5)
    np.testing.assert_allclose(summary["kl_k1"], -np.mean(np.log(r)), rtol=1e-5)
    np.testing.assert_allclose(summary["ratio_mean"], np.mean(r), rtol=1e-6)
    np.testing.assert_allclose(summary["effective_samples"], 1 / np.mean((r / np.mean(r)) ** 2), rtol=1e-6)


def test_sums_of_microbatches_add():
    l, A, w, mask = papers.random_batch(2)
    batch = Batch(mask=mask, old_logp=np.zeros_like(l), advantages=A, weights=w)
    whole, _ = policy(l, batch)
    parts = [policy(l[s], jax.tree.map(lambda x, s=s: x[s], batch))[0] for s in (np.s_[:2], np.s_[2:])]
    assert whole["clipped"] > 0
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5), *parts, whole)


def test_a_mean_over_nothing_is_nan_and_adds_nothing_to_a_mean_over_something():
    zero = np.zeros((2, 4))
    batch = Batch(mask=zero > 0, old_logp=zero * np.nan, advantages=zero, weights=zero)
    none, summary = policy(zero, batch)
    assert all(np.isnan(value) for value in summary.values())
    assert all(np.isnan(x) for x in metrics.reward_summary(zero[:, :1], zero[:, None] > 0).values())
    l, A, w, mask = papers.random_batch(2)
    some, summary = policy(l, Batch(mask=mask, old_logp=np.zeros_like(l), advantages=A, weights=w))
    both = metrics.policy_summary(jax.tree.map(np.add, some, none))
    jax.tree.map(np.testing.assert_array_equal, both, summary)
    assert summary["ratio_mean"] > 0.5


def test_reward_summary_counts_what_is_present():
    mask = np.arange(4) < np.array([[[4], [2], [0]], [[1], [1], [1]]])
    summary = jax.jit(metrics.reward_summary)(np.array([[1, 0, 1], [1, 1, 1]]), mask)
    values = {"reward": 0.8, "reward_std": 0.4, "length": 9 / 5, "informative": 0.5}
    for name, value in values.items():
        np.testing.assert_allclose(summary[name], value, rtol=1e-6)
    with pytest.raises(ValueError, match="rewards has shape"):
        metrics.reward_summary(np.ones((2, 2)), mask)


def test_positions_by_hand():
    """Ordinals 1, 2 and 3, 4 of two rows with a hole; w = 1, and ratios outside 1 ± 0.2 are clipped."""
    l = np.array([[0.1, 0.3, np.nan, 0.5, -0.2], [-0.1, -0.5, 0.1, 0.1, 7.0]])
    mask = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], bool)
    advantages = np.array([[1.0] * 5, [-1.0] * 5])
    batch = Batch(mask=mask, old_logp=np.zeros((2, 5)), advantages=advantages, weights=np.ones((2, 5)))

    @jax.jit
    def positions(l, batch):
        sums = metrics.position_sums(l, batch, CLIP, edges=(2, 8))
        return sums, metrics.position_summary(sums)

    sums, summary = positions(l, batch)
    np.testing.assert_array_equal(sums["tokens"], [4, 4, 0])
    np.testing.assert_allclose(summary["clip_share_positive"], [0.25, 0.25, np.nan], rtol=1e-6)
    np.testing.assert_allclose(summary["clip_share_negative"], [0.25, 0, np.nan], rtol=1e-6)
    first, later = [0.1, 0.4, -0.1, -0.6], [0.9, 0.7, -0.5, -0.4]
    np.testing.assert_allclose(summary["drift"], [np.mean(first), np.mean(later), np.nan], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(summary["spread"], [np.std(first), np.std(later), np.nan], rtol=1e-5)
    with pytest.raises(ValueError, match=r"edges = \(8, 2\)"):
        metrics.position_sums(l, batch, CLIP, edges=(8, 2))


def test_the_sign_length_gap_by_hand():
    mask = np.arange(4) < np.array([[[4], [2], [1]], [[3], [0], [4]]])
    A = np.where(mask, np.array([[1.0, -1.0, 0.5], [-1.0, 9.0, 0.0]])[..., None], np.nan)
    gap = jax.jit(metrics.sign_length_gap)
    np.testing.assert_allclose(gap(A, mask), 2.5 - 2.5)
    np.testing.assert_allclose(gap(A[:1], mask[:1]), 0.5)
    assert gap(np.abs(A), mask) == 0


def test_variance_proxies_by_hand():
    """Ā = 2, −1 and W = 3, 0.5 over B = 2 completions: P = (4·3 + 1·0.5)/2; an empty third completion is ignored."""
    mask = np.array([[[True, True], [True, False], [False, False]]])
    A, proxy = np.array([[[1.0, 3.0], [-1.0, 9.0], [9.0, 9.0]]]), np.array([[[1.0, 2.0], [0.5, 9.0], [9.0, 9.0]]])
    variances = jax.jit(metrics.variance_proxies)
    about = variances(A, mask, proxy=proxy, gradient_norm=1.5)
    np.testing.assert_allclose([about[name] for name in ("signal", "total", "noise")], [2.25, 6.25, 4.0], rtol=1e-6)
    assert variances(A, mask, proxy=proxy, gradient_norm=9.0)["noise"] == 0


def test_a_signal_that_is_known_is_taken_as_it_is():
    rewards, mask = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[[True], [True]], [[True], [True]]])
    assert metrics.reward_summary(rewards, mask)["informative"] == 0.5
    assert metrics.reward_summary(rewards, mask, np.array([True, True]))["informative"] == 1
    with pytest.raises(ValueError, match="signal"):
        metrics.reward_summary(rewards, mask, np.array([True]))
