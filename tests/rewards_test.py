"""Dynamic sampling, the permuted control, and length penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import rewards


def test_informative_groups_are_those_whose_present_rewards_differ():
    mask = np.ones((5, 3, 2), bool)
    mask[2, 0] = False  # the only one that differs is absent
    mask[3] = False
    mask[4, 1:] = False
    R = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(rewards.informative(R, mask), [True, False, False, False, False])


def test_permutation_stays_in_the_group_and_differs_between_groups():
    R = jnp.broadcast_to(jnp.arange(8.0), (64, 8))
    permuted = np.asarray(rewards.permute_within_group(R, jax.random.key(0)))
    np.testing.assert_array_equal(np.sort(permuted, axis=1), R)
    assert len({tuple(row) for row in permuted}) > 60
    assert np.all(np.abs(permuted.mean(axis=0) - 3.5) < 1.2)


def test_overlong_penalty_is_soft():
    lengths = jnp.array([0, 80, 85, 90, 100, 110])
    np.testing.assert_allclose(
        rewards.overlong_penalty(lengths, max_length=100, buffer=20), [0, 0, -0.25, -0.5, -1, -1.5]
    )


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
