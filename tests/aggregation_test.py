from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import aggregation
from tests import papers
from tests.together import together

CASES = {
    "token_mean": (aggregation.token_mean, papers.token_mean),
    "sequence_mean": (aggregation.sequence_mean, papers.sequence_mean_weights),
    "group_mean": (aggregation.group_mean, papers.group_mean),
    "constant": (partial(aggregation.constant, max_length=9), papers.constant(9)),
    "balanced": (aggregation.balanced, papers.balanced),
}


@together
def every(mask, sign):
    return {name: f(mask, sign) for name, (f, _) in CASES.items()}


def random_step(seed):
    _, mask, _ = papers.random_rollouts(seed)
    mask[2] = False
    return mask, np.random.default_rng(seed).integers(-1, 2, mask.shape[:2])


def test_every_aggregation_has_a_formula_here():
    assert set(CASES) == set(aggregation.__all__) - {"side"}


@pytest.mark.parametrize("name", CASES)
def test_weights_are_the_papers(name):
    mask, sign = random_step(1)
    expected = CASES[name][1](mask, sign)
    with jax.enable_x64(True):
        weights, shifted = (every(m, sign.astype(np.float64))[name] for m in (mask, np.roll(mask, 1, axis=-1)))
    assert weights.dtype == jnp.float64
    assert papers.agree(weights, expected)
    assert not papers.agree(shifted, expected, 1e-3)
    for dtype in (np.int8, np.float32):
        np.testing.assert_array_equal(every(mask, sign.astype(dtype))[name], every(mask, sign.astype(np.int32))[name])


@pytest.mark.parametrize("name", ["token_mean", "sequence_mean", "group_mean", "balanced"])
def test_weights_are_a_measure(name):
    mask, sign = random_step(2)
    sign = np.where(sign == 0, 1, sign)
    np.testing.assert_allclose(np.sum(every(mask, sign)[name]), 1, rtol=1e-6)


def test_balanced_equals_the_sequence_mean_or_the_group_mean_for_special_lengths():
    sign = np.array([[1, 1, -1, -1]])
    equal_on_each_side = np.arange(6) < np.array([[[2], [2], [5], [5]]])
    equal_means = np.arange(6) < np.array([[[2], [4], [1], [5]]])
    for mask, other in ((equal_on_each_side, "sequence_mean"), (equal_means, "group_mean")):
        weights = every(mask, sign)
        np.testing.assert_allclose(weights["balanced"], weights[other], rtol=1e-6)


def test_a_completion_of_advantage_zero_counts_in_the_group_only():
    mask = np.ones((1, 4, 2), bool)
    weights = jax.jit(aggregation.balanced)(mask, np.array([[1, -1, 0, 0]]))
    np.testing.assert_allclose(weights[0, :, 0], [1 / 8, 1 / 8, 0, 0])


def test_side_is_the_sign_of_the_mean_over_trained_tokens():
    A = np.array([[[1.0, -3.0, np.nan], [1.0, np.nan, np.nan], [0.0, 0.0, 0.0], [1.0, -1.0, np.nan], [np.nan] * 3]])
    np.testing.assert_array_equal(jax.jit(aggregation.side)(A, ~np.isnan(A)), [[-1, 1, 0, 0, 0]])


@pytest.mark.parametrize("name", CASES)
def test_arguments_that_do_not_fit(name):
    mask, sign = random_step(0)
    f = CASES[name][0]
    with pytest.raises(TypeError, match="mask has dtype float32: expected bool"):
        f(mask.astype(np.float32), sign)
    with pytest.raises(ValueError, match=r"sign has shape \(4, 4\): expected \(4, 5\)"):
        f(mask, sign[:, :4])
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\)"):
        f(mask[..., 0], sign)


def test_constants_out_of_range_and_sides_that_do_not_fit():
    mask, sign = random_step(0)
    with pytest.raises(ValueError, match="max_length = 0"):
        aggregation.constant(mask, sign, max_length=0)
    with pytest.raises(ValueError, match=r"advantages has shape \(4, 5\)"):
        aggregation.side(np.ones(sign.shape), mask)
