"""Microbatches whose completions are all masked are not computed, and nothing else changes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms
from rljax.models import Decoder
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State, accumulate
from rljax.training.step.policy import make_update, summarize
from rljax.training.step.scoring import make_score
from tests.training.one_step import assert_same_step, config_of, params_of, prepare, recorded, rollouts_of, scorer_of

pytestmark = pytest.mark.standard_promotion
PASSES: list[int] = []


class Counting(Decoder):
    def hidden(self, params, tokens, segment_ids):
        jax.debug.callback(lambda: PASSES.append(len(tokens)))
        return super().hidden(params, tokens, segment_ids)


def masked(config, groups):
    """The rollouts of `config` with only the given groups unmasked."""
    rollouts = rollouts_of(config)
    kept = np.isin(np.arange(len(rollouts.mask)), groups)
    return dataclasses.replace(rollouts, mask=rollouts.mask & kept[:, None, None])


def counting(config, sizes):
    scorer = scorer_of(config, sizes)
    return dataclasses.replace(scorer, model=Counting(scorer.model.config, scorer.model.rules))


def passes(run):
    found, noted = recorded(run, PASSES)
    return found, len(noted)


@functools.cache
def step(algorithm, microbatches, sizes, groups):
    """(metrics, start − end parameters), forward passes of `prepare`, and forward passes of the update."""
    config = config_of(algorithm, microbatches)
    scorer, optimizer = counting(config, sizes), optax.sgd(1.0)
    params = params_of(scorer)
    start = jax.device_get(params)
    rollouts = to_devices(masked(config, groups), scorer.mesh, P())
    (prepared, _), scored = passes(lambda: prepare(config, scorer, params, rollouts))
    update, state = make_update(config, scorer, optimizer), State(params, init_state(optimizer, params))
    (state, sums), trained = passes(lambda: update(state, None, prepared, algorithm))
    moved = jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params))
    return (jax.device_get(summarize([sums])), moved), scored, trained


@pytest.mark.parametrize("sizes", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 2, 1)], ids=str)
def test_masked_groups_are_skipped_in_whole_microbatches(sizes):
    """Groups 0 and 3 of 4, with 8 completions each, are 4 of 8 microbatches."""
    algorithm = algorithms.cppo()
    whole, scored, trained = step(algorithm, 1, (1, 1, 1), (0, 3))
    assert (scored, trained) == (1, 1)
    parts, scored, trained = step(algorithm, 8, sizes, (0, 3))
    assert (scored, trained) == (4, 4)
    assert_same_step(parts, whole, 1e-5)
    _, scored, trained = step(algorithm, 8, sizes, (0, 1, 2, 3))
    assert (scored, trained) == (8, 8)


def test_a_batch_without_tokens_is_not_computed():
    (metrics, moved), scored, trained = step(algorithms.cppo(), 8, (1, 1, 1), ())
    assert (scored, trained) == (0, 0)
    assert metrics["skipped_steps"] == 1
    assert all(np.all(x == 0) for x in jax.tree.leaves(moved))


def test_scores_return_to_their_rows():
    config = config_of(algorithms.dapo())
    scorer = scorer_of(config)
    params, rollouts = params_of(scorer), to_devices(masked(config, (3, 1)), scorer.mesh, P())
    whole, parts = (jax.jit(make_score(scorer, rows))(params, rollouts).stats for rows in (32, 4))
    assert np.abs(whole.logp[3]).max() > 1
    for name in ("logp", "entropy", "proxy"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-5, err_msg=name)


def test_the_sum_over_present_rows_is_the_sum():
    def loss(params, rows):
        value = jnp.sum(rows["w"] * jnp.tanh(rows["x"] @ params))
        return value, {"rows": jnp.sum(rows["w"])}

    draw = np.random.default_rng(0)
    params, w = jnp.asarray(draw.normal(size=5)), np.float32([0, 0.5, 0, 0, 0.2, 0, 0.7, 0])
    rows = {"x": draw.normal(size=(8, 5)).astype(np.float32), "w": w}
    (value, aux), gradient = accumulate(loss, params, rows, 1)
    (found, found_aux), found_gradient = accumulate(loss, params, rows, 4, jnp.asarray(w > 0))
    np.testing.assert_allclose([found, found_aux["rows"]], [value, aux["rows"]], rtol=1e-6)
    np.testing.assert_allclose(found_gradient, gradient, rtol=1e-5, atol=1e-6)
    assert np.abs(gradient).max() > 0.1


def exploring(stats, batch, *, kl):
    """A penalty without a mask, since its arrays are 0 at masked tokens."""
    return jnp.sum(kl + stats.logp - batch.ref_logp - 0.1 * stats.entropy)


def test_penalties_and_values_of_skipped_rows_are_0():
    """Rows are masked singly, so that some microbatches are skipped and others have masked rows."""
    algorithm, steps = algorithms.ppo(), []
    for microbatches in (1, 8):
        config = config_of(algorithm, microbatches, penalty=exploring)
        scorer, optimizer = scorer_of(config), optax.sgd(1.0)
        rollouts = rollouts_of(config)
        kept = np.isin(np.arange(32), [0, 1, 5, *range(9, 15), 28, 29]).reshape(4, 8, 1)
        rollouts = to_devices(dataclasses.replace(rollouts, mask=rollouts.mask & kept), scorer.mesh, P())
        params = params_of(scorer)
        start, reference = jax.device_get(params), jax.tree.map(jnp.copy, params)
        prepared, _ = prepare(config, scorer, params, rollouts)
        update, state = make_update(config, scorer, optimizer), State(params, init_state(optimizer, params))
        state, sums = update(state, reference, prepared, algorithm)
        moved = jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params))
        steps.append((jax.device_get(summarize([sums])), moved))
    whole, parts = steps
    assert_same_step(parts, whole, 2e-5)
    assert parts[0]["value_loss"] == pytest.approx(whole[0]["value_loss"], rel=1e-5)
