"""Metrics: hand-worked, additive over microbatches, and quiet about empty batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, metrics, ratio
from tests import papers

SUMS = jax.jit(metrics.policy_sums, static_argnums=2)
CLIP = partial(ratio.clip, low=0.2, high=0.2)


def test_worked_summary():
    logp = jnp.log(jnp.array([[1.5, 1.1, 0.5, 1.5], [1.5, 1.0, 0.5, jnp.nan]]))
    advantages = jnp.array([[1.0] * 4, [-1.0] * 4])
    weights = jnp.array([[0.1, 0.2, 0.3, 0.0], [0.1, 0.1, 0.2, 5.0]])
    mask = jnp.ones((2, 4), bool).at[1, 3].set(False)
    batch = Batch(mask=mask, old_logp=jnp.zeros((2, 4)), advantages=advantages, weights=weights)
    summary = metrics.policy_summary(SUMS(logp, batch, CLIP))
    r = np.array([1.5, 1.1, 0.5, 1.5, 1.5, 1.0, 0.5])
    np.testing.assert_allclose(summary["clip_share"], (0.1 + 0.2) / 1.0, rtol=1e-6)  # 1.5 above, 0.5 below; w = 0 apart
    np.testing.assert_allclose(summary["clip_share_positive"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(summary["clip_share_negative"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(summary["kl"], np.mean(r - 1 - np.log(r)), rtol=1e-5)
    np.testing.assert_allclose(summary["kl_k1"], -np.mean(np.log(r)), rtol=1e-5)
    np.testing.assert_allclose(summary["ratio_mean"], np.mean(r), rtol=1e-6)
    np.testing.assert_allclose(summary["effective_samples"], 1 / np.mean((r / np.mean(r)) ** 2), rtol=1e-6)


def test_sums_of_microbatches_add():
    l, A, w, mask = (jnp.asarray(x) for x in papers.random_batch(2))
    batch = Batch(mask=mask, old_logp=jnp.zeros_like(l), advantages=A, weights=w)
    whole = SUMS(l, batch, CLIP)
    parts = [SUMS(l[s], jax.tree.map(lambda x, s=s: x[s], batch), CLIP) for s in (np.s_[:2], np.s_[2:])]
    assert whole["clipped"] > 0
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a + b, c, rtol=1e-5), *parts, whole)


def test_an_empty_batch_gives_zeros():
    zero = jnp.zeros((2, 3))
    batch = Batch(mask=zero > 0, old_logp=zero * jnp.nan, advantages=zero, weights=zero)
    summary = metrics.policy_summary(SUMS(zero, batch, CLIP))
    assert all(value == 0 for value in summary.values())


def test_reward_summary_counts_what_is_present():
    mask = np.arange(4) < np.array([[[4], [2], [0]], [[1], [1], [1]]])
    summary = metrics.reward_summary(np.array([[1, 0, 1], [1, 1, 1]]), mask)
    values = {"reward": 0.8, "reward_std": 0.4, "length": 9 / 5, "informative": 0.5}
    for name, value in values.items():
        np.testing.assert_allclose(summary[name], value, rtol=1e-6)
    with pytest.raises(ValueError, match="rewards has shape"):
        metrics.reward_summary(np.ones((2, 2)), mask)


def test_positions_by_hand():
    """Ordinals 1, 2 | 3, 4 of two rows, with a hole; w = 1, and the positive row is cut at .2 from the left."""
    l = jnp.array([[0.1, 0.3, jnp.nan, 0.5, -0.2], [-0.1, -0.5, 0.1, 0.1, 7.0]])
    mask = jnp.array([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0]], bool)
    advantages = jnp.array([[1.0] * 5, [-1.0] * 5])
    batch = Batch(mask=mask, old_logp=jnp.zeros((2, 5)), advantages=advantages, weights=jnp.ones((2, 5)))
    sums = jax.jit(metrics.position_sums, static_argnames=("ratio", "edges"))(l, batch, ratio=CLIP, edges=(2, 8))
    summary = metrics.position_summary(sums)
    np.testing.assert_array_equal(sums["tokens"], [4, 4, 0])
    np.testing.assert_allclose(summary["clip_share_positive"], [0.25, 0.25, 0], rtol=1e-6)
    np.testing.assert_allclose(summary["clip_share_negative"], [0.25, 0, 0], rtol=1e-6)
    first, later = [0.1, 0.4, -0.1, -0.6], [0.9, 0.7, -0.5, -0.4]
    np.testing.assert_allclose(summary["drift"], [np.mean(first), np.mean(later), 0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(summary["spread"], [np.std(first), np.std(later), 0], rtol=1e-5)
    with pytest.raises(ValueError, match=r"edges = \(8, 2\)"):
        metrics.position_sums(l, batch, CLIP, edges=(8, 2))


def test_the_sign_length_gap_by_hand():
    mask = np.arange(4) < np.array([[[4], [2], [1]], [[3], [0], [4]]])
    A = np.where(mask, np.array([[1.0, -1.0, 0.5], [-1.0, 9.0, 0.0]])[..., None], np.nan)
    np.testing.assert_allclose(metrics.sign_length_gap(A, mask), 2.5 - 2.5)
    np.testing.assert_allclose(metrics.sign_length_gap(A[:1], mask[:1]), 0.5)
    assert metrics.sign_length_gap(np.abs(A), mask) == 0


def test_variance_proxies_by_hand():
    """Ā = 2, −1 and W = 3, .5 over B = 2 completions: P = (4·3 + 1·.5)/2; an empty third counts nowhere."""
    mask = np.array([[[True, True], [True, False], [False, False]]])
    A, proxy = np.array([[[1.0, 3.0], [-1.0, 9.0], [9.0, 9.0]]]), np.array([[[1.0, 2.0], [0.5, 9.0], [9.0, 9.0]]])
    about = metrics.variance_proxies(A, mask, proxy=proxy, gradient_norm=1.5)
    np.testing.assert_allclose([about[name] for name in ("signal", "total", "noise")], [2.25, 6.25, 4.0], rtol=1e-6)
    assert metrics.variance_proxies(A, mask, proxy=proxy, gradient_norm=9.0)["noise"] == 0
