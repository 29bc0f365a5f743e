from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import rewards


def test_informative_groups_are_those_whose_present_rewards_differ():
    mask = np.ones((5, 3, 2), bool)
    mask[2, 0] = False  # the only different reward is absent
    mask[3] = False
    mask[4, 1:] = False
    R = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(jax.jit(rewards.informative)(R, mask), [True, False, False, False, False])


def test_permutation_stays_in_the_group_and_differs_between_groups():
    R = np.broadcast_to(np.arange(8.0), (64, 8))
    permuted = np.asarray(jax.jit(rewards.permute_within_group)(R, jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(permuted, axis=1), R)
    assert len({tuple(row) for row in permuted}) > 60
    assert np.all(np.abs(permuted.mean(axis=0) - 3.5) < 1.2)


def test_overlong_penalty_is_soft():
    lengths = np.array([0, 80, 85, 90, 100, 110])
    penalty = jax.jit(partial(rewards.overlong_penalty, max_length=100, buffer=20))(lengths)
    np.testing.assert_allclose(penalty, [0, 0, -0.25, -0.5, -1, -1])


def test_arguments_that_do_not_fit():
    mask = np.ones((2, 3, 4), bool)
    with pytest.raises(ValueError, match=r"rewards has shape \(2, 4\): expected \(2, 3\)"):
        rewards.informative(np.ones((2, 4)), mask)
    with pytest.raises(TypeError, match="mask has dtype"):
        rewards.informative(np.ones((2, 3)), mask * 1.0)
    with pytest.raises(ValueError, match=r"rewards has shape \(2,\): expected \[P, G\]"):
        rewards.permute_within_group(np.ones(2), jax.random.key(0))
    with pytest.raises(ValueError, match="buffer = 0"):
        rewards.overlong_penalty(np.ones(2), max_length=5, buffer=0)


def test_length_shaping_is_its_formula():
    rng = np.random.default_rng(0)
    mask = np.arange(9) < rng.integers(1, 10, (4, 6))[..., None]
    right = np.array([[1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 1], [0, 0, 0, 1, 1, 0]], float)
    mask[1, 5] = False
    expected = right.copy()
    for p in (0, 2):
        lengths = mask[p].sum(-1)
        own = lengths[right[p] > 0]
        for g in np.flatnonzero(right[p]):
            expected[p, g] = 1 - 0.3 / (1 + np.exp(-(lengths[g] - own.mean()) / own.std(ddof=1)))
    with jax.enable_x64(True):
        shaped = jax.jit(partial(rewards.length_shaping, share=0.5, alpha=0.3))(right, mask)
    np.testing.assert_allclose(shaped, expected, rtol=1e-12)
    assert np.ptp(expected[0][right[0] > 0]) > 0.05
    np.testing.assert_array_equal(jax.jit(partial(rewards.length_shaping, share=0.0))(right, mask), right)
    same = jax.jit(partial(rewards.length_shaping, share=1.0, alpha=0.2))(np.ones((1, 2)), np.ones((1, 2, 3), bool))
    np.testing.assert_allclose(same, [[0.9, 0.9]])
    with pytest.raises(ValueError, match=r"alpha = 1\.5"):
        rewards.length_shaping(jnp.asarray(right), mask, alpha=1.5)


def test_improvement_by_hand():
    """Earlier means 0.2, 0.4, 0.6 (σ = 0.2), mean 0.8 now: ξ = 2."""
    mask = np.ones((1, 5, 2), bool)
    absent = mask & (np.arange(5) < 4)[:, None]
    now, before = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]]), np.array([0.2, 0.4, 0.6])
    improvement = jax.jit(rewards.improvement)
    np.testing.assert_allclose(improvement(now, mask, before), 2.0, rtol=1e-6)
    assert improvement(now, mask, np.array([0.5, 0.5])) == 0
    np.testing.assert_allclose(improvement(now, absent, before), 3.0, rtol=1e-6)
