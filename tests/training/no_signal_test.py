"""Optimizer steps without a learning signal are skipped and counted, and do not enter any mean."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.training.errors import RunError
from rljax.training.nonfinite import require_finite
from rljax.training.optimizer import init_state, make_optimizer
from rljax.training.placement import to_devices
from rljax.training.report.metrics_log import MetricsLog, read
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update, summarize
from rljax.training.step.scoring import make_prepare
from tests.training.one_step import MESHES, config_of, params_of, rollouts_of, scorer_of

pytestmark = pytest.mark.standard_promotion

GRPO = algorithms.grpo()
ADAMW = make_optimizer(dataclasses.replace(config_of(GRPO).optimizer, learning_rate=0.1, weight_decay=0.5))


def steps_on(config, batches, sizes=MESHES[0], optimizer=ADAMW):
    """(states on the host: initial, then after each step; metric sums of each step), one optimizer step per batch."""
    scorer = scorer_of(config, sizes)
    prepare, update = make_prepare(config, scorer), make_update(config, scorer, optimizer)
    params = params_of(scorer)
    state = State(params, init_state(optimizer, params))
    states, steps = [jax.device_get(state)], []
    for batch in batches:
        batch = to_devices(batch, scorer.mesh, P())
        prepared, _ = prepare(state.params, state.params, batch, (), config.algorithm)
        state, sums = update(state, None, prepared, config.algorithm)
        states.append(jax.device_get(state))
        steps.append(sums)
    return states, steps


def flat_rewards(rollouts):
    return dataclasses.replace(rollouts, rewards=np.ones_like(rollouts.rewards))


def nothing_trained(rollouts):
    return dataclasses.replace(rollouts, mask=np.zeros_like(rollouts.mask))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("sizes", [MESHES[0], MESHES[2]], ids=str)
@pytest.mark.parametrize("silent", [flat_rewards, nothing_trained])
def test_without_a_signal_nothing_moves(silent, sizes):
    """The step before moves the parameters, so momentum and weight decay would move them again."""
    rollouts = rollouts_of(None)
    (start, first, second), steps = steps_on(config_of(GRPO), [rollouts, silent(rollouts)], sizes)
    assert not same(first, start)
    assert same(second, first)
    found = summarize(steps)
    assert (found["optimizer_steps"], found["skipped_steps"]) == (1, 1)
    assert found["grad_norm"] == steps[0]["grad_norm"] > 1e-3


def test_a_schedule_does_not_count_a_step_that_is_not_taken():
    """The learning rate grows per step; a skipped step between two steps must not change the second."""
    rollouts = rollouts_of(None)
    optimizer = optax.sgd(lambda step: 1e-3 * (step + 1.0))
    config = config_of(GRPO)
    with_pause = steps_on(config, [rollouts, flat_rewards(rollouts), rollouts], optimizer=optimizer)[0][-1]
    assert same(with_pause, steps_on(config, [rollouts, rollouts], optimizer=optimizer)[0][-1])


@pytest.mark.parametrize("config", [
    config_of(GRPO, penalty=lambda stats, batch: penalty.entropy_bonus(stats.entropy, batch)),
    config_of(algorithms.ppo()),
], ids=["penalty", "critic"])  # fmt: skip
def test_a_penalty_or_a_critic_is_a_signal(config):
    rollouts = flat_rewards(rollouts_of(None))
    (start, end), steps = steps_on(config, [rollouts])
    assert not same(end.params, start.params)
    assert summarize(steps)["skipped_steps"] == 0
    assert same(*steps_on(config, [nothing_trained(rollouts)])[0])


def test_means_are_over_the_tokens_of_the_rollout():
    rollouts = rollouts_of(None)
    half = dataclasses.replace(rollouts, mask=rollouts.mask & (np.arange(8)[:, None] < 3))
    _, (one, none, two) = steps_on(config_of(GRPO), [rollouts, nothing_trained(rollouts), half])
    with_pause, without = summarize([one, none, two]), summarize([one, two])
    assert (with_pause.pop("skipped_steps"), without.pop("skipped_steps")) == (1, 0)
    assert with_pause == without
    (n, entropy), (m, other) = ((float(s["policy"]["tokens"]), float(s["entropy"])) for s in (one, two))
    assert n > 2 * m > 0
    np.testing.assert_allclose(with_pause["entropy"], (entropy + other) / (n + m), rtol=1e-6)
    np.testing.assert_allclose(with_pause["loss"], one["loss"] + two["loss"], rtol=1e-5)
    r, s = (float(x["policy"]["ratio"]) for x in (one, two))
    np.testing.assert_allclose(with_pause["ratio_mean"], (r + s) / (n + m), rtol=1e-6)


def test_a_rollout_without_trained_tokens_logs_null_without_an_exception(tmp_path):
    _, steps = steps_on(config_of(GRPO), [nothing_trained(rollouts_of(None))])
    found = {name: float(value) for name, value in summarize(steps).items()}
    require_finite(found, "rl", 0, {}, tmp_path)
    with MetricsLog(tmp_path) as log:
        log.write("rl", 0, found)
    row = read(tmp_path)[0]
    numbers = {"phase", "step", "loss", "optimizer_steps", "skipped_steps"}
    assert {name for name, value in row.items() if value is not None} == numbers
    assert row["loss"] == 0
    assert '"entropy": null' in json.dumps(row)
    for name in ("loss", "grad_norm"):
        with pytest.raises(RunError, match=f"{name} = nan"):
            require_finite({**found, "grad_norm": 1.0, "optimizer_steps": 1.0, name: np.nan}, "rl", 0, {}, tmp_path)
