"""Fields that the trainer supplies on demand: values, greedy rewards, divergences, carried state, the exact KL."""

import dataclasses
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.models import initialize, without_value_head
from rljax.objective import weighted_batch
from rljax.rollout import SamplingConfig
from rljax.tasks.batching import left_padded
from rljax.training.collect import draw
from rljax.training.components import make_components
from rljax.training.evaluation.command import evaluate_run
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.stages import LikelihoodStage, PolicyStage
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_loss, make_update, summarize
from rljax.training.step.scoring import flat
from tests.training.in_process import on_devices, train
from tests.training.one_step import (
    MESHES,
    assert_same_step,
    config_of,
    one_step,
    params_of,
    prepare,
    rollouts_of,
    scorer_of,
)
from tests.training.subprocesses import metrics
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def prepared_of(config, seed=0):
    scorer = scorer_of(config)
    params = params_of(scorer, seed)
    rollouts = to_devices(rollouts_of(config), scorer.mesh, P())
    return scorer, params, *prepare(config, scorer, params, rollouts)


def test_the_critic_learns_the_reward_to_go():
    """Values start at 0, so the value loss is Σ w ½R² and the gradient of the bias is −c Σ w R."""
    metrics, gradient = one_step(config_of(algorithms.ppo()), MESHES[0])
    rollouts = rollouts_of(None)
    R, n = rollouts.rewards, rollouts.mask.sum(axis=-1)
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * np.sum(n * R**2) / n.sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient["value_bias"], -0.5 * np.sum(n * R) / n.sum(), rtol=1e-5)
    assert np.linalg.norm(gradient["value"]) > 1e-2


@pytest.mark.parametrize("config", [
    config_of(algorithms.ppo()), config_of(algorithms.cppo()),
    config_of(algorithms.grpo(), penalty=lambda stats, batch, *, kl: 0.1 * penalty.exact_kl(kl, batch)),
], ids=["critic", "divergence", "exact kl"])  # fmt: skip
def test_what_is_supplied_is_the_same_on_a_mesh(config):
    assert_same_step(one_step(config, (2, 2, 2)), one_step(config, MESHES[0]), 1e-5)


def test_likeliest_tokens_and_the_divergence_since_the_rollout():
    """All 19 tokens are listed, so their mass is 1; with limit 0 no token is clipped until π changes."""
    config = config_of(algorithms.cppo(limit=0.0, slack=0.0))
    scorer, params, prepared, _ = prepared_of(config)
    mass = jnp.sum(jnp.exp(prepared.extra.likeliest.logp), axis=-1)
    np.testing.assert_allclose(np.asarray(mass)[np.asarray(prepared.rollouts.mask)], 1.0, rtol=1e-5)
    update = make_update(config, scorer, optax.sgd(1.0))
    state = State(params, init_state(optax.sgd(1.0), params))
    state, at_rest = update(state, None, prepared, config.algorithm)
    _, moved = update(state, None, prepared, config.algorithm)
    assert summarize([at_rest])["clip_share"] == 0
    assert 0.2 < summarize([moved])["clip_share"] < 0.8


def test_a_divergence_is_computed_at_the_sampling_temperature():
    config = config_of(algorithms.cppo(limit=0.0, slack=0.0))
    scorer = dataclasses.replace(scorer_of(config), temperature=0.5)
    rollouts, model = rollouts_of(config), scorer.model
    tokens, segment_ids, mask = flat((rollouts.tokens, rollouts.segment_ids, rollouts.mask))

    @jax.jit
    def scored(params, others):
        old, new = (model.hidden(p, tokens, segment_ids) for p in (params, others))
        old_logp, logp = (scorer.stats(p, h, tokens, mask).logp for p, h in ((params, old), (others, new)))
        likeliest = scorer.likeliest(params, old, tokens, old_logp, 20)
        q, p = (jax.nn.softmax(2 * h @ model.unembedding(x).T, axis=-1) for x, h in ((params, old), (others, new)))
        return scorer.divergence(others, new, tokens, logp, likeliest)[:, 1:], 0.5 * jnp.sum(jnp.abs(p - q), axis=-1)

    found, expected = scored(params_of(scorer, 0), params_of(scorer, 1))
    among = mask[:, 1:]
    assert np.min(expected[:, :-1][among]) > 0.05
    np.testing.assert_allclose(found[among], expected[:, :-1][among], rtol=1e-4)


def test_negatives_are_left_out_once_the_entropy_is_high():
    for high, expected in ((2.0, True), (5.0, False)):  # the initial entropy is about ln 19 = 2.9 nats
        config = config_of(algorithms.aepo(entropy_low=0.5, entropy_high=high))
        *_, prepared, dropping = prepared_of(config)
        assert bool(dropping) is expected
        assert bool(jnp.all(prepared.advantages >= 0)) is expected
        assert jnp.max(prepared.advantages) > 0.5


def test_a_penalty_may_ask_for_the_exact_kl():
    config = config_of(algorithms.grpo(), penalty=lambda stats, batch, *, kl: penalty.exact_kl(kl, batch))
    scorer, params, prepared, _ = prepared_of(config)
    model = scorer.model
    reference = params_of(scorer, 1)
    batch = weighted_batch(config.algorithm.aggregation, prepared.rollouts, prepared.advantages)
    rows = flat((batch, prepared.extra))

    def value(config):
        loss = make_loss(config, scorer)
        return jax.jit(lambda p, r: loss(p, rows, config.algorithm.ratio, r)[0])(params, reference)

    def log_pi(params):
        hidden = model.hidden(params, rows[0].tokens, rows[0].segment_ids)
        return jax.nn.log_softmax(hidden @ model.unembedding(params).T, axis=-1)[:, :-1]

    ours, theirs = log_pi(params), log_pi(reference)
    kl = jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)
    expected = jnp.sum(rows[0].weights[:, 1:] * kl)
    assert expected > 1e-3
    np.testing.assert_allclose(value(config) - value(config_of(algorithms.grpo())), expected, rtol=1e-3)


def test_greedy_rewards_are_those_of_greedy_completions(data):
    task = dataclasses.replace(tiny.task, data_dir=data)
    with on_devices(1):
        parts = make_components(dataclasses.replace(tiny, task=task))
    parts = parts._replace(data=dataclasses.replace(parts.data, reward=lambda prompt, text, answer: 1.0 + len(text)))
    params = initialize(parts.model, parts.mesh, jax.random.key(0))
    params["unembedding"] = params["unembedding"].at[1].multiply(2.0)  # makes some completions end
    problems = parts.data.prompts[:64]
    prompts = left_padded([parts.data.tokenizer.encode(problem.prompt) for problem in problems], 8)

    def drawn(temperature, seed):
        sampling = SamplingConfig(max_new_tokens=10, temperature=temperature)
        return draw(parts, sampling, params, prompts, problems, jax.random.key(seed))

    greedy, hot = drawn(0.0, 1), drawn(1.0, 1)
    np.testing.assert_array_equal(greedy.rewards, drawn(0.0, 2).rewards)
    assert greedy.rewards.shape == (64,)
    assert len(set(greedy.rewards.tolist())) > 1
    assert np.any(greedy.rewards != hot.rewards)


def trained(folder, data, algorithm, **more):
    settings = {"steps": 1, "checkpoint_every": 0, "algorithm": algorithm, "run": folder} | more
    task = dataclasses.replace(tiny.task, problems=8, data_dir=data)
    evaluation = dataclasses.replace(tiny.evaluation, problems=4, kl_start=True)
    config = dataclasses.replace(tiny, task=task, evaluation=evaluation, **settings)
    return config, train(config)


def test_a_stage_is_released_before_the_next_and_its_figures_are_of_the_verified_rewards(tmp_path, data, monkeypatch):
    """The tiny model never solves a problem, so no group has a signal, although `reward_map` makes half of them 1."""
    first, begin, step = [], LikelihoodStage.begin, PolicyStage.step

    def noted(stage, params):
        first.append(weakref.ref(stage))
        begin(stage, params)

    def after(stage, n, key):
        gc.collect()
        assert first[0]() is None
        return step(stage, n, key)

    monkeypatch.setattr(LikelihoodStage, "begin", noted)
    monkeypatch.setattr(PolicyStage, "step", after)
    config, _ = trained(tmp_path / "run", data, algorithms.dapo())
    (row,) = metrics(config.run, "rl")
    assert len(first) == 1
    assert row["informative"] == row["reward"] == 0
    assert row["grad_norm"] > 1e-3


def test_the_state_of_an_algorithm_is_saved_with_the_run(tmp_path, data):
    config, stage = trained(tmp_path / "aepo", data, algorithms.aepo(entropy_low=0.01, entropy_high=0.02))
    assert stage.carried
    again = train(config)
    assert again.carried


def test_a_run_with_a_critic_starts_from_one_without_and_vice_versa(tmp_path, data):
    likelihood = dataclasses.replace(tiny.likelihood, steps=2)
    trained(tmp_path / "plain", data, algorithms.dapo(), likelihood=likelihood)
    config, critic = trained(tmp_path / "critic", data, algorithms.ppo(), start_from=tmp_path / "plain")
    assert "value" in critic.reference
    with on_devices(1):
        assert evaluate_run(config)
    _, back = trained(tmp_path / "back", data, algorithms.dapo(), start_from=tmp_path / "critic")
    ours, theirs = (jax.tree.leaves(x) for x in (back.reference, without_value_head(critic.reference)))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert isinstance(back, PolicyStage)
