"""Every field that an algorithm requires reaches it; corrections, carried states and schedules take effect."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import PolicyGradient, advantage, aggregation, algorithms, carried, correction, penalty, ratio
from rljax.training.needs import ROLLOUTS
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.stages import PolicyStage, on_host
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update, summarize
from tests.training.one_step import config_of, length, less, params_of, prepare, rollouts_of, scorer_of

pytestmark = pytest.mark.standard_promotion

SAMPLED = dataclasses.replace(
    rollouts_of(None),
    sampled_logp=rollouts_of(None).old_logp - np.linspace(0, 1, 12, dtype=np.float32),
    components=np.stack([rollouts_of(None).rewards, np.ones((4, 8), np.float32)], axis=-1),
)


def step_of(config, rollouts=SAMPLED):
    """(Prepared, metrics, start − end parameters, carried state) of one optimizer step."""
    scorer, optimizer = scorer_of(config), optax.sgd(1.0)
    params = params_of(scorer)
    prepared, state = prepare(config, scorer, params, to_devices(rollouts, scorer.mesh, P()))
    start = jax.device_get(params)
    update = make_update(config, scorer, optimizer)
    after, sums = update(State(params, init_state(optimizer, params)), None, prepared, config.algorithm_at(0))
    moved = jax.tree.map(np.subtract, start, jax.device_get(after.params))
    return prepared, jax.device_get(summarize([sums])), moved, state


def uses_everything(rewards, mask, *, tokens, segment_ids, old_logp, sampled_logp, ref_logp, proxy, entropy, values,
                    greedy_rewards, components, task):  # fmt: skip
    per_token = tokens + segment_ids + old_logp + sampled_logp + ref_logp + proxy + entropy + values
    per_prompt = greedy_rewards + task + components.sum(axis=(1, 2))
    return np.float32(1) * per_token + per_prompt[:, None, None] + 0 * rewards[..., None]


def test_every_field_of_the_table_is_supplied():
    config = config_of(PolicyGradient(uses_everything, aggregation.token_mean, ratio.token))
    assert config.needs == ROLLOUTS.keys()
    prepared, metrics, *_ = step_of(config)
    for name in ROLLOUTS:
        assert getattr(prepared.rollouts, name) is not None, name
    assert metrics["grad_norm"] > 0
    mask = np.asarray(prepared.rollouts.mask)
    scored = np.asarray(prepared.rollouts.ref_logp)  # the reference is the policy itself
    assert np.all(scored[mask] < 0)
    assert np.all(scored[~mask] == 0)


def test_a_token_correction_trains_with_other_weights():
    plain = algorithms.grpo()
    weight = partial(correction.token_truncated, cap=1.5)
    corrected = dataclasses.replace(plain, aggregation=correction.weighted(plain.aggregation, weight))
    _, metrics, moved, _ = step_of(config_of(corrected))
    _, as_is, unweighted, _ = step_of(config_of(plain))
    assert metrics["grad_norm"] > 1e-3
    assert length(less(moved, unweighted)) > 0.05 * length(unweighted)
    agreeing = dataclasses.replace(SAMPLED, sampled_logp=SAMPLED.old_logp)
    _, same, *_ = step_of(config_of(corrected), agreeing)
    np.testing.assert_allclose(same["grad_norm"], as_is["grad_norm"], rtol=1e-5)


def test_rewards_less_their_moving_average():
    algorithm = dataclasses.replace(algorithms.opo(), carried=carried.average_reward(decay=0.75))
    prepared, _, _, state = step_of(config_of(algorithm))
    present = SAMPLED.mask.any(axis=-1)
    average = 0.25 * SAMPLED.rewards[present].mean()
    np.testing.assert_allclose(state, average, rtol=1e-6)
    np.testing.assert_allclose(prepared.rollouts.rewards, SAMPLED.rewards - average, rtol=1e-6)


def test_an_entropy_bonus_follows_its_target():
    def bonus(stats, batch):
        return penalty.adaptive_entropy(stats.entropy, batch)

    def found(target):
        state = carried.target_entropy(target=target, step=0.5)
        return step_of(config_of(dataclasses.replace(algorithms.grpo(), carried=state), penalty=bonus))

    (_, on, _, coefficient), (_, off, _, unused) = found(9.0), found(0.1)
    assert (float(coefficient), float(unused)) == (0.5, 0)
    plain = step_of(config_of(algorithms.grpo()))[1]["loss"]
    np.testing.assert_allclose(off["loss"], plain, rtol=1e-5)
    assert on["loss"] < plain - 1.0  # 0.5 times an entropy of about ln 19 nats


def test_components_reach_the_advantage_that_names_them():
    algorithm = dataclasses.replace(algorithms.grpo(), advantage=advantage.multi_reward)
    prepared, *_ = step_of(config_of(algorithm))
    expected = advantage.multi_reward(SAMPLED.rewards, SAMPLED.mask, components=SAMPLED.components)
    np.testing.assert_allclose(prepared.advantages, expected, rtol=1e-4, atol=1e-6)


def test_hyper_parameters_may_be_arrays():
    """`on_host` converts scalars to Python numbers, which are weakly typed, and arrays to NumPy arrays."""
    weighed = partial(advantage.multi_reward, coefficients=jnp.array([1.0, 0.0]))
    algorithm = on_host(dataclasses.replace(algorithms.grpo(low=jnp.array(0.25)), advantage=weighed))
    coefficients, low, high = jax.tree.leaves(algorithm)
    assert isinstance(coefficients, np.ndarray)
    assert (type(low), type(high)) == (float, float)
    prepared, *_ = step_of(config_of(algorithm))
    alone = advantage.reinforce_plus_plus_baseline
    signs = np.sign(alone(SAMPLED.rewards, SAMPLED.mask))
    np.testing.assert_array_equal(np.sign(prepared.advantages), signs)


def test_a_schedule_is_asked_for_the_step_of_the_rollout():
    seen = []

    def prepare(params, reference, rollouts, carried, algorithm):
        seen.extend(jax.tree.leaves(algorithm)[:1])
        raise StopIteration

    config = SimpleNamespace(rollout=None, algorithm_at=lambda n: algorithms.holder_po(p=float(n)))
    parts = SimpleNamespace(to_devices=lambda tree: tree)
    stage = SimpleNamespace(config=config, parts=parts, state=SimpleNamespace(params=None), _prepare=prepare,
                            reference=None, carried=(), steps=100, look_every=0)  # fmt: skip
    with pytest.raises(StopIteration):
        PolicyStage._learn(stage, None, 7)  # pyright: ignore[reportArgumentType]
    assert seen == [7.0]
