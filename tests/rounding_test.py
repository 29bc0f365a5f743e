"""Rewards that differ only by rounding give an advantage of 0 at any scale."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage, aggregation, rewards
from tests.arguments import SIZES, arguments

NO_BASELINE = ("discounted_returns", "generalized_advantage_estimation", "remax", "whiten")
COMBINED = {
    "standardized": advantage.standardized(advantage.mean_baseline),
    "whitened": advantage.whitened(advantage.mean_baseline),
    "without_negatives": advantage.without_negatives(advantage.mean_baseline),
}
BASELINES = {
    name: COMBINED.get(name, getattr(advantage, name)) for name in advantage.__all__ if name not in NO_BASELINE
}


def ulps(shape, value, dtype=np.float32):
    """The value, with its neighbors above and below at some places."""
    value = dtype(value)
    near = np.array([value, np.nextafter(value, dtype(np.inf)), np.nextafter(value, dtype(-np.inf))])
    return near[np.random.default_rng(0).integers(0, 3, shape)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [100.0, 0.3, -1e-3, 1e6])
@pytest.mark.parametrize("name", BASELINES)
def test_a_group_of_rewards_that_differ_by_a_rounding_has_no_advantage(name, value, dtype):
    given = arguments(name)
    mask = np.ones_like(given["mask"])
    given = {k: v for k, v in given.items() if k in inspect.signature(BASELINES[name]).parameters}
    same = ulps(mask.shape[:2], value, dtype)
    assert len(np.unique(same[0])) > 1
    given |= {"rewards": same, "mask": mask}
    if "components" in given:
        given["components"] = np.stack([same] * SIZES["K"], -1)
    with jax.enable_x64(dtype == np.float64), jax.numpy_dtype_promotion("standard"):
        A = BASELINES[name](**given)
    np.testing.assert_array_equal(A, np.zeros(mask.shape))


def test_a_difference_of_a_few_millionths_is_a_signal():
    for scale in (1e-3, 1.0, 100.0):
        R = np.float32(scale) * np.array([[1.0, 1.00001]], np.float32)
        A = advantage.mean_baseline(R, np.ones((1, 2, 1), bool))
        np.testing.assert_allclose(np.ravel(A), scale * np.array([-5e-6, 5e-6]), rtol=2e-2)
        assert rewards.informative(R, np.ones((1, 2, 1), bool))[0]


def test_informative_groups_are_not_those_of_a_rounding():
    R, mask = np.stack([ulps((4,), 100.0), np.float32([1, 0, 1, 1])]), np.ones((2, 4, 2), bool)
    np.testing.assert_array_equal(rewards.informative(R, mask), [False, True])
    R[0, 0] = np.nan
    np.testing.assert_array_equal(rewards.informative(R, mask), [True, True])


def test_an_infinite_reward_is_not_a_rounding():
    R, mask = np.float32([[np.inf, 0.0]]), np.ones((1, 2, 1), bool)
    assert rewards.informative(R, mask)[0]
    assert not np.all(advantage.group_relative(R, mask) == 0)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-12, 1e12])
def test_rewards_of_any_scale_count_alike(scale):
    """R₁ = 1, 0 and R₂ = 0, 100 cancel; with three completions the scale of a component has no effect."""
    mask = np.ones((1, 2, 3), bool)
    run = jax.jit(advantage.multi_reward)
    opposite = np.float32([[[1, 0], [0, 100]]]) * np.float32(scale)
    np.testing.assert_array_equal(run(np.zeros((1, 2)), mask, components=opposite), np.zeros((1, 2, 3)))
    R = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    expected = run(np.zeros((2, 3)), np.ones((2, 3, 4), bool), components=R)
    scaled = run(np.zeros((2, 3)), np.ones((2, 3, 4), bool), components=R * np.float32([scale, 1]))
    np.testing.assert_allclose(scaled, expected, rtol=2e-5, atol=2e-6)
    assert np.max(np.abs(expected)) > 0.5


def test_sides_of_a_constant_group_are_0():
    mask = np.ones((2, 4, 3), bool)
    A = advantage.leave_one_out(np.stack([ulps((4,), 0.1), np.float32([1, 0, 0, 0])]), mask)
    np.testing.assert_array_equal(aggregation.side(A, mask), [[0, 0, 0, 0], [1, -1, -1, -1]])


def test_the_mean_of_max_rl_may_be_0():
    """(R − mean)/mean by hand: 0 if the mean is 0, also up to rounding, and R in a group of one."""
    max_rl, mask = jax.jit(advantage.max_rl), np.ones((5, 2, 1), bool)
    mask[3, 1] = mask[4, 0] = False
    R = np.float32([[1, 0], [0, 0], [0.1 + 0.2, -0.3], [0.5, 9], [9, 0]])
    np.testing.assert_allclose(max_rl(R, mask)[..., 0], [[1, -1], [0, 0], [0, 0], [0.5, 0], [0, 0]])
    scaled = partial(max_rl, mask=mask)(jnp.asarray(7 * R))[..., 0]
    np.testing.assert_allclose(scaled[:3], [[1, -1], [0, 0], [0, 0]])
