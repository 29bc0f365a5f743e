"""Recomputation of log π_old below float32, in the optimizer step or in a forward pass over the rollout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms
from rljax.objective import PolicyGradient, weighted_batch
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update, summarize
from tests.training.one_step import MESHES, config_of, params_of, prepare, rollouts_of, scorer_of

pytestmark = pytest.mark.standard_promotion


def config(algorithm, dtype="bfloat16", **rollout):
    base = config_of(algorithm)
    rollout = dataclasses.replace(base.rollout, **rollout)
    return dataclasses.replace(base, model=dataclasses.replace(base.model, dtype=dtype), rollout=rollout)


def first_step(config, sizes=MESHES[0]):
    """(metrics, Prepared, rollouts, log π of a forward pass) of a first step; the rollouts' old_logp differs a lot."""
    scorer, optimizer = scorer_of(config, sizes), optax.sgd(1.0)
    params = params_of(scorer)
    rollouts = to_devices(rollouts_of(config), scorer.mesh, P())
    prepared, _ = prepare(config, scorer, params, rollouts)
    tokens, segment_ids, mask = (x.reshape(32, 12) for x in (rollouts.tokens, rollouts.segment_ids, rollouts.mask))
    hidden = scorer.model.hidden(params, tokens, segment_ids)
    logp = jax.device_get(scorer.stats(params, hidden, tokens, mask).logp).reshape(4, 8, 12)
    minibatch = jax.tree.map(lambda x: x[:: config.rollout.minibatches], prepared)
    state = State(params, init_state(optimizer, params))
    _, sums = make_update(config, scorer, optimizer)(state, None, minibatch, config.algorithm)
    return jax.device_get(summarize([sums])), prepared, rollouts, logp


def reads_old_logp(rewards, mask, *, old_logp):
    return jnp.where(mask, rewards[..., None] - 0.5 - 0.1 * old_logp, 0.0)


@pytest.mark.parametrize("sizes", [MESHES[0], MESHES[2]], ids=str)
@pytest.mark.parametrize("microbatches", [1, 4])
def test_an_on_policy_step_is_exactly_on_policy(sizes, microbatches):
    """GSPO clips at 3e-4, so the difference between old_logp and log π would be clipped without rescoring."""
    found, prepared, rollouts, _ = first_step(config(algorithms.gspo(), microbatches=microbatches), sizes)
    assert (found["ratio_mean"], found["clip_share"], found["kl"], found["mismatch"]) == (1, 0, 0, 0)
    assert np.array_equal(prepared.rollouts.old_logp, rollouts.old_logp)  # no forward pass is run
    assert found["grad_norm"] > 1e-2
    as_sampled, *_ = first_step(config(algorithms.gspo(), microbatches=microbatches, rescore=False), sizes)
    assert as_sampled["clip_share"] > 0.1
    assert as_sampled["mismatch"] > 0.1


@pytest.mark.parametrize("more", [{"minibatches": 2}, {"epochs": 2, "microbatches": 2}], ids=str)
def test_several_optimizer_steps_require_a_forward_pass(more):
    found, prepared, rollouts, logp = first_step(config(algorithms.gspo(), **more))
    mask = np.asarray(rollouts.mask)
    np.testing.assert_allclose(np.asarray(prepared.rollouts.old_logp)[mask], logp[mask], atol=0.05)
    assert np.abs(np.asarray(rollouts.old_logp) - logp)[mask].mean() > 0.1
    assert found["mismatch"] < 0.05
    np.testing.assert_allclose(found["ratio_mean"], 1, atol=0.01)
    assert first_step(config(algorithms.gspo(), rescore=False, **more))[0]["mismatch"] > 0.1


def test_float32_uses_the_samplers_log_probabilities_unless_rescore_is_set():
    as_sampled, prepared, rollouts, _ = first_step(config(algorithms.grpo(), "float32"))
    assert np.array_equal(prepared.rollouts.old_logp, rollouts.old_logp)
    assert as_sampled["mismatch"] > 0.1
    asked, *_ = first_step(config(algorithms.grpo(), "float32", rescore=True))
    assert asked["ratio_mean"] == 1
    several, prepared, rollouts, logp = first_step(config(algorithms.grpo(), "float32", rescore=True, minibatches=2))
    assert several["mismatch"] < 1e-4
    mask = np.asarray(rollouts.mask)
    np.testing.assert_allclose(np.asarray(prepared.rollouts.old_logp)[mask], logp[mask], rtol=1e-5)


def test_an_advantage_that_reads_old_logp_reads_the_new_one():
    algorithm = PolicyGradient(reads_old_logp, algorithms.grpo().aggregation, algorithms.grpo().ratio)
    _, prepared, rollouts, logp = first_step(config(algorithm))
    expected = reads_old_logp(np.asarray(rollouts.rewards), np.asarray(rollouts.mask), old_logp=logp)
    np.testing.assert_allclose(prepared.advantages, expected, atol=0.005)
    batch = weighted_batch(algorithm.aggregation, prepared.rollouts, prepared.advantages)
    np.testing.assert_allclose(
        np.asarray(batch.old_logp)[np.asarray(rollouts.mask)], logp[np.asarray(rollouts.mask)], atol=0.05
    )


def test_the_divergence_from_oneself_is_zero():
    """With one optimizer step CPPO needs no forward pass; with two, one pass gives the top tokens and old_logp."""
    algorithm = algorithms.cppo(limit=0.0, slack=0.0)
    found, prepared, *_ = first_step(config(algorithm))
    assert prepared.extra.likeliest is None
    assert found["clip_share"] == 0
    _, prepared, rollouts, _ = first_step(config(algorithm, minibatches=2))
    mask = np.asarray(rollouts.mask)
    here = np.asarray(prepared.extra.likeliest.ids) == np.asarray(rollouts.tokens)[..., None]
    listed = np.sum(np.where(here, prepared.extra.likeliest.logp, 0), axis=-1)
    np.testing.assert_allclose(listed[mask], np.asarray(prepared.rollouts.old_logp)[mask], atol=1e-5)
