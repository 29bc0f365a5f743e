import dataclasses

import jax
import numpy as np
import pytest

from rljax import Carried, Rollouts, carried
from tests.examples import make


def rollouts(entropy=0.0, rewards=(1.0, 0.0), mask=True) -> Rollouts:
    shape = (1, 2, 3)
    return Rollouts(
        tokens=np.zeros(shape, np.int32),
        mask=np.full(shape, mask),
        rewards=np.array([rewards], np.float32),
        old_logp=np.zeros(shape, np.float32),
        entropy=np.full(shape, entropy, np.float32),
    )


def through(value: Carried, each) -> tuple[list, list]:
    """The rollouts and the state after each rollout, with one jitted call per rollout."""
    advance = jax.jit(lambda state, r: carried.advance(value, state, r))
    state, seen, states = value.init(), [], []
    for r in each:
        r, state = advance(state, r)
        seen.append(r)
        states.append(np.asarray(state))
    return seen, states


def test_dropping_switches_at_its_two_thresholds():
    value = make("aepo").carried
    entropies = (0.7, 1.2, 0.7, 0.4, 0.7)
    seen, states = through(value, [rollouts(entropy=e) for e in entropies])
    assert [bool(s) for s in states] == [False, True, True, False, False]
    assert [bool(r.dropping) for r in seen] == [bool(s) for s in states]


def test_a_rollout_without_tokens_leaves_every_state():
    for value in (make("aepo").carried, carried.average_reward(decay=0.5), carried.target_entropy(initial=0.25)):
        before = value.init()
        _, (state,) = through(value, [rollouts(entropy=9.0, mask=False)])
        np.testing.assert_array_equal(state, before)


def test_the_average_reward_is_subtracted_after_its_update():
    each = [(1.0, 0.0), (1.0, 1.0), (0.0, 0.0)]
    seen, states = through(carried.average_reward(decay=0.75), [rollouts(rewards=r) for r in each])
    average = 0.0
    for r, found, state in zip(each, seen, states, strict=True):
        average = 0.75 * average + 0.25 * np.mean(r)
        np.testing.assert_allclose(state, average, rtol=1e-6)
        np.testing.assert_allclose(found.rewards[0], np.array(r) - average, rtol=1e-6)


def test_the_entropy_coefficient_follows_its_target():
    value = carried.target_entropy(target=0.2, step=0.1)
    entropies = (0.1, 0.1, 0.3, 0.3, 0.3)
    seen, states = through(value, [rollouts(entropy=e) for e in entropies])
    np.testing.assert_allclose(states, [0.1, 0.2, 0.1, 0.0, 0.0], atol=1e-7)
    used = [float(r.entropy_coefficient[0, 0, 0]) for r in seen]
    np.testing.assert_allclose(used, [0.1, 0.2, 0.0, 0.0, 0.0], atol=1e-7)


def test_a_field_that_an_update_names_is_given_to_it():
    value = carried.entropy_hysteresis(low=0.1, high=0.2)
    without = dataclasses.replace(rollouts(), entropy=None)
    with pytest.raises(ValueError, match=r"Rollouts\.entropy = None: .* requires"):
        carried.advance(value, value.init(), without)


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"low = 0\.3: expected at most high = 0\.2"):
        carried.entropy_hysteresis(low=0.3, high=0.2)
    with pytest.raises(ValueError, match=r"decay = 1\.5: expected"):
        carried.average_reward(decay=1.5)
