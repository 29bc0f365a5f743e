"""Rollout correction against its formulas at float64, its laws, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import correction
from tests import papers

WEIGHTS = ("token_truncated", "sequence_truncated", "icepop", "sequence_masked")
REJECTIONS = ("geometric", "k3", "veto")


def rows(seed=0, scale=0.4, shape=(8, 9)):
    """λ and a ragged mask with holes; NaN where it is false."""
    rng = np.random.default_rng(seed)
    mask = papers.random_mask(rng, shape)
    mismatch = rng.normal(size=shape) * scale * rng.choice([1e-3, 0.1, 1.0, 8.0], (*shape[:-1], 1))
    return np.where(mask, mismatch, np.nan), mask


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_papers(name):
    mismatch, mask = rows()
    expected = np.zeros(mask.shape)
    for b, m in enumerate(mask):
        expected[b, m] = getattr(papers, name)(mismatch[b, m])
    with jax.enable_x64(True):
        ours = jax.jit(getattr(correction, name))(mismatch, mask)
    assert ours.dtype == jnp.float64
    assert papers.agree(ours, expected)
    assert not papers.agree(mask, expected, 1e-2)
    assert getattr(correction, name)(jnp.asarray(mismatch, jnp.bfloat16), mask).dtype == jnp.float32


@pytest.mark.parametrize(("name", "scale"), [("geometric", 0.02), ("k3", 0.4), ("veto", 4.0)])
def test_rejections_are_the_papers(name, scale):
    mismatch, mask = rows(scale=scale)
    expected = np.array([getattr(papers, name)(x[m]) for x, m in zip(mismatch, mask, strict=True)])
    with jax.enable_x64(True):
        kept = jax.jit(getattr(correction, name))(mismatch, mask)
    np.testing.assert_array_equal(kept, expected)
    assert 0 < expected.sum() < len(expected)


@pytest.mark.parametrize("name", [*WEIGHTS, *REJECTIONS])
def test_without_mismatch_nothing_is_corrected_and_nothing_is_differentiated(name):
    _, mask = rows()
    f = getattr(correction, name)
    zero = jnp.zeros(mask.shape)
    np.testing.assert_array_equal(f(zero, mask), mask if name in WEIGHTS else np.ones(8, bool))
    if name in WEIGHTS:
        gradient = jax.grad(lambda x: jnp.sum(f(x, mask)))(zero + 0.1)
        np.testing.assert_array_equal(gradient, zero)


def test_worked_values():
    mismatch, mask = jnp.log(jnp.array([[3.0, 0.1, 1.0, 7.0]])), jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(correction.token_truncated(mismatch, mask), [[2, 0.1, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(correction.icepop(mismatch, mask), [[3, 0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(correction.sequence_truncated(mismatch, mask), [[0.3, 0.3, 0.3, 0]], rtol=1e-6)
    np.testing.assert_allclose(correction.sequence_masked(mismatch, mask, cap=0.2), [[0, 0, 0, 0]])
    # ρ = 3 is above 1, and a bound of [.5, 5] keeps it: the bounds are on ρ, not on its inverse
    assert correction.geometric(jnp.log(jnp.array([[3.0]])), jnp.array([[True]]), low=0.5, high=5)
    assert not correction.geometric(jnp.log(jnp.array([[0.3]])), jnp.array([[True]]), low=0.5, high=5)


def test_normalised_weights_have_mean_one():
    mismatch, mask = rows()
    weights = correction.batch_normalised(correction.token_truncated(mismatch, mask), mask)
    np.testing.assert_allclose(np.mean(np.asarray(weights)[mask]), 1, rtol=1e-6)
    np.testing.assert_array_equal(correction.batch_normalised(jnp.zeros((1, 2)), jnp.ones((1, 2), bool)), [[0, 0]])


def test_the_report_by_hand():
    mismatch, mask = jnp.log(jnp.array([[2.0, 0.5], [1.0, 9.0], [9.0, 9.0]])), jnp.array([[1, 1], [1, 0], [0, 0]], bool)
    kept = jnp.array([True, False, True])
    about = correction.report(mismatch, mask, kept=kept)
    np.testing.assert_allclose(about["rejected"], 0.5)  # of the two sequences that have tokens
    np.testing.assert_allclose(about["effective_samples"], 2.5**2 / 2 / 4.25, rtol=1e-6)
    np.testing.assert_allclose(about["chi_squared"], (4 + 0.25 + 1) / 3 - 1, rtol=1e-6)
    np.testing.assert_allclose(about["kl"], 0.5 / 3, rtol=1e-5)  # ρ − λ − 1: 1 − log 2, log 2 − ½, 0


def test_far_away_there_is_no_nan():
    mismatch, mask = jnp.array([[100.0, -100.0], [-100.0, -100.0]]), jnp.ones((2, 2), bool)
    for name in WEIGHTS:
        assert np.all(np.isfinite(getattr(correction, name)(mismatch, mask)))
    for name in REJECTIONS:
        assert not np.all(getattr(correction, name)(mismatch, mask))


@pytest.mark.parametrize("name", [*WEIGHTS, *REJECTIONS])
def test_arguments_that_do_not_fit(name):
    f = getattr(correction, name)
    with pytest.raises(TypeError, match="mask has dtype float32"):
        f(jnp.zeros((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"mismatch has shape \(2, 2\): expected \(2, 3\)"):
        f(jnp.zeros((2, 2)), jnp.ones((2, 3), bool))
    bound = {"icepop": "low", "geometric": "low", "k3": "limit", "veto": "least"}.get(name, "cap")
    with pytest.raises(ValueError, match=f"{bound} = -1"):
        f(jnp.zeros((2, 3)), jnp.ones((2, 3), bool), **{bound: -1})


@pytest.mark.parametrize("f", [correction.icepop, correction.geometric])
def test_bounds_in_the_wrong_order(f):
    with pytest.raises(ValueError, match=r"low = 2\.0: expected at most high = 1\.0"):
        f(jnp.zeros((2, 3)), jnp.ones((2, 3), bool), low=2.0, high=1.0)
    jax.eval_shape(lambda low: f(jnp.zeros((2, 3)), jnp.ones((2, 3), bool), low=low, high=1.0), jnp.float32(2))
