from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import correction
from tests import papers
from tests.together import together

WEIGHTS = ("token_truncated", "sequence_truncated", "icepop", "sequence_masked")
REJECTIONS = ("geometric", "k3", "veto")
FUNCTIONS = {name: getattr(correction, name) for name in (*WEIGHTS, *REJECTIONS)}


def rows(seed=0, scale=0.4, shape=(8, 9)):
    """λ and a ragged mask with holes; λ is NaN at masked tokens."""
    rng = np.random.default_rng(seed)
    mask = papers.random_mask(rng, shape)
    mismatch = rng.normal(size=shape) * scale * rng.choice([1e-3, 0.1, 1.0, 8.0], (*shape[:-1], 1))
    return np.where(mask, mismatch, np.nan), mask


@together
def corrections(mismatch, mask):
    return {name: f(mismatch, mask) for name, f in FUNCTIONS.items()}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_papers(name):
    mismatch, mask = rows()
    expected = np.zeros(mask.shape)
    for b, m in enumerate(mask):
        expected[b, m] = getattr(papers, name)(mismatch[b, m])
    with jax.enable_x64(True):
        ours = corrections(mismatch, mask)[name]
    assert ours.dtype == jnp.float64
    assert papers.agree(ours, expected)
    assert not papers.agree(mask, expected, 1e-2)
    low = jax.ShapeDtypeStruct(mask.shape, jnp.bfloat16)
    assert jax.eval_shape(FUNCTIONS[name], low, mask).dtype == jnp.float32


@pytest.mark.parametrize(("name", "scale"), [("geometric", 0.02), ("k3", 0.4), ("veto", 4.0)])
def test_rejections_are_the_papers(name, scale):
    mismatch, mask = rows(scale=scale)
    expected = np.array([getattr(papers, name)(x[m]) for x, m in zip(mismatch, mask, strict=True)])
    with jax.enable_x64(True):
        kept = corrections(mismatch, mask)[name]
    np.testing.assert_array_equal(kept, expected)
    assert 0 < expected.sum() < len(expected)


@together
def gradients(mismatch, mask):
    return {name: jax.grad(lambda x, name=name: jnp.sum(FUNCTIONS[name](x, mask)))(mismatch) for name in WEIGHTS}


@pytest.mark.parametrize("name", [*WEIGHTS, *REJECTIONS])
def test_without_mismatch_nothing_is_corrected_and_nothing_is_differentiated(name):
    _, mask = rows()
    zero = np.zeros(mask.shape, np.float32)
    np.testing.assert_array_equal(corrections(zero, mask)[name], mask if name in WEIGHTS else np.ones(8, bool))
    if name in WEIGHTS:
        np.testing.assert_array_equal(gradients(zero + np.float32(0.1), mask)[name], zero)


def test_worked_values():
    mismatch, mask = np.log([[3.0, 0.1, 1.0, 7.0]]), np.array([[True, True, True, False]])
    found = corrections(mismatch, mask)
    np.testing.assert_allclose(found["token_truncated"], [[2, 0.1, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(found["icepop"], [[3, 0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(found["sequence_truncated"], [[0.3, 0.3, 0.3, 0]], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(partial(correction.sequence_masked, cap=0.2))(mismatch, mask), [[0, 0, 0, 0]])
    # the bounds [0.5, 5] are on ρ, not on 1/ρ, so ρ = 3 is kept
    near = jax.jit(partial(correction.geometric, low=0.5, high=5))
    np.testing.assert_array_equal(near(np.log([[3.0], [0.3]]), np.ones((2, 1), bool)), [True, False])


def test_normalized_weights_have_mean_one():
    mismatch, mask = rows()
    normalized = jax.jit(correction.batch_normalized)
    weights = normalized(corrections(mismatch, mask)["token_truncated"], mask)
    np.testing.assert_allclose(np.mean(np.asarray(weights)[mask]), 1, rtol=1e-6)
    np.testing.assert_array_equal(normalized(np.zeros((1, 2)), np.ones((1, 2), bool)), [[0, 0]])


def test_the_report_by_hand():
    mismatch, mask = np.log([[2.0, 0.5], [1.0, 9.0], [9.0, 9.0]]), np.array([[1, 1], [1, 0], [0, 0]], bool)
    kept = np.array([True, False, True])
    about = jax.jit(correction.report)(mismatch, mask, kept=kept)
    np.testing.assert_allclose(about["rejected"], 0.5)  # one of the two sequences with tokens
    np.testing.assert_allclose(about["effective_samples"], 2.5**2 / 2 / 4.25, rtol=1e-6)
    np.testing.assert_allclose(about["chi_squared"], (4 + 0.25 + 1) / 3 - 1, rtol=1e-6)
    np.testing.assert_allclose(about["kl"], 0.5 / 3, rtol=1e-5)  # ρ − λ − 1: 1 − log 2, log 2 − ½, 0


def test_far_away_there_is_no_nan():
    found = corrections(np.array([[100.0, -100.0], [-100.0, -100.0]]), np.ones((2, 2), bool))
    for name in WEIGHTS:
        assert np.all(np.isfinite(found[name]))
    for name in REJECTIONS:
        assert not np.all(found[name])


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


def test_off_policy_sequences_of_negative_advantage_are_masked():
    rng = np.random.default_rng(0)
    mismatch, mask, sign = rng.normal(0, 0.3, (6, 5, 7)), rng.random((6, 5, 7)) > 0.3, rng.integers(-1, 2, (6, 5))
    with jax.enable_x64(True):
        found = jax.jit(partial(correction.opsm, limit=0.05))(mismatch, mask, sign)
    expected = np.zeros((6, 5), bool)
    for p, g in np.ndindex(6, 5):
        divergence = [-mismatch[p, g, t] for t in range(7) if mask[p, g, t]]
        expected[p, g] = sign[p, g] >= 0 or sum(divergence) / max(len(divergence), 1) <= 0.05
    np.testing.assert_array_equal(found, expected)
    assert 0 < np.sum(~expected) < np.sum(sign < 0)
