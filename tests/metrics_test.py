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
