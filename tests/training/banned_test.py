"""Banned tokens in scoring and training: results equal a softmax over the remaining tokens, without NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State
from rljax.training.step.likelihood import make_update as make_likelihood_update
from rljax.training.step.policy import make_update, summarize
from rljax.training.step.scoring import make_prepare
from tests.training.one_step import MESHES, config_of, params_of, rollouts_of, scorer_of

pytestmark = pytest.mark.standard_promotion

BANNED, ALLOWED = (0, 3), np.setdiff1d(np.arange(19), (0, 3))
CPPO = config_of(algorithms.cppo(limit=0.0, slack=0.0))


def banning(sizes=MESHES[0]):
    return dataclasses.replace(scorer_of(CPPO, sizes), banned=BANNED)


def by_softmax(scorer, params, tokens, segment_ids):
    """(hidden states, log π of every allowed token at each position)."""
    hidden = scorer.model.hidden(params, tokens, segment_ids)
    logits = (hidden @ scorer.model.unembedding(params).T)[..., ALLOWED]
    return hidden, jnp.pad(jax.nn.log_softmax(logits)[:, :-1], ((0, 0), (1, 0), (0, 0)))


@pytest.mark.parametrize("sizes", [MESHES[0], MESHES[2]], ids=str)
def test_statistics_are_those_of_the_other_tokens(sizes):
    scorer, rollouts = banning(sizes), rollouts_of(CPPO)
    params, other = params_of(scorer), params_of(scorer, 1)
    tokens, segment_ids, mask = (x.reshape(32, 12) for x in (rollouts.tokens, rollouts.segment_ids, rollouts.mask))

    @jax.jit
    def scored(params, other):
        hidden, logp = by_softmax(scorer, params, tokens, segment_ids)
        _, theirs = by_softmax(scorer, other, tokens, segment_ids)
        stats = scorer.stats(params, hidden, tokens, mask)
        kl = scorer.kl(params, hidden, other, tokens, segment_ids, mask)
        likeliest = scorer.likeliest(params, hidden, tokens, stats.logp, 19)
        return stats, kl, likeliest, logp, theirs

    stats, kl, likeliest, logp, theirs = jax.device_get(scored(params, other))
    here = np.take_along_axis(logp, np.searchsorted(ALLOWED, tokens)[..., None], -1)[..., 0]
    np.testing.assert_allclose(stats.logp[mask], here[mask], rtol=1e-4)
    np.testing.assert_allclose(stats.entropy[mask], -np.sum(np.exp(logp) * logp, -1)[mask], rtol=1e-4)
    np.testing.assert_allclose(kl[mask], np.sum(np.exp(logp) * (logp - theirs), -1)[mask], rtol=1e-3, atol=1e-6)
    assert kl[mask].max() > 1e-3
    assert likeliest.ids.shape[-1] == len(ALLOWED)
    assert not np.isin(likeliest.ids[mask], BANNED).any()
    np.testing.assert_allclose(np.exp(likeliest.logp).sum(-1)[mask], 1, rtol=1e-4)


@pytest.mark.parametrize("config", [
    CPPO,
    config_of(algorithms.grpo(), penalty=lambda stats, batch, *, kl: (
        penalty.exact_kl(kl, batch) + penalty.entropy_bonus(stats.entropy, batch))),
], ids=["cppo", "penalty"])  # fmt: skip
def test_a_step_is_finite_and_its_rollout_may_not_hold_them(config):
    scorer, rollouts = banning(), rollouts_of(config)
    params, optimizer = params_of(scorer), optax.sgd(1.0)
    start = jax.device_get(params)
    rollouts = to_devices(rollouts, scorer.mesh, P())
    reference = params_of(scorer, 1)
    prepared, _ = make_prepare(config, scorer)(params, reference, rollouts, (), config.algorithm)
    state = State(params, init_state(optimizer, params))
    state, sums = make_update(config, scorer, optimizer)(state, reference, prepared, config.algorithm)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((summarize([sums]), state.params)))
    moved = np.abs(np.asarray(state.params["unembedding"]) - start["unembedding"]).max(axis=1)
    assert not moved[list(BANNED)].any()
    assert moved[ALLOWED].min() > 1e-6


def test_stage_one_learns_from_demonstrations_that_hold_them():
    scorer, optimizer = scorer_of(CPPO), optax.sgd(1.0)
    rollouts = rollouts_of(CPPO)
    rows = {name: getattr(rollouts, name).reshape(32, 12) for name in ("tokens", "segment_ids", "mask")}
    rows["tokens"][rows["mask"]] = BANNED[0]
    params = params_of(scorer)
    start = jax.device_get(params)
    state = State(params, init_state(optimizer, params))
    rows = to_devices(rows, scorer.mesh, P(scorer.model.rules.rows))
    state, metrics = make_likelihood_update(1, scorer, optimizer)(state, rows)
    assert 1 < metrics["loss"] < 6
    assert np.abs(np.asarray(state.params["unembedding"]) - start["unembedding"])[BANNED[0]].max() > 1e-3
