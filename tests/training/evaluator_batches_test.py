"""Batches of an evaluation: their sizes, and draws that do not depend on how completions share forward passes."""

import dataclasses

import jax
import numpy as np
import pytest

from rljax.models import initialize
from rljax.rollout import SamplingConfig, generate
from rljax.training import collect
from rljax.training.components import make_components
from rljax.training.evaluation.evaluator import Evaluator
from tests.models.bigram import BigramConfig
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.standard_promotion

program = jax.jit(generate, static_argnames=("model", "config", "stop_ids", "banned"))


def evaluator_of(data, batch, devices):
    """An evaluator of a random bigram model; the reward of a completion is its length."""
    task, evaluation = dataclasses.replace(tiny.task, data_dir=data), dataclasses.replace(tiny.evaluation, batch=batch)
    likelihood = dataclasses.replace(tiny.likelihood, steps=0)
    config = dataclasses.replace(tiny, task=task, model=BigramConfig(), likelihood=likelihood, evaluation=evaluation)
    with on_devices(devices):
        parts = make_components(config)

    def length(prompt, text, answer, *, length):
        return float(length)

    data = dataclasses.replace(parts.data, reward=length, checks={})
    return Evaluator(config, parts._replace(data=data))


@pytest.mark.parametrize(
    ("problems", "samples", "batch", "devices", "shapes"),
    [
        (3, 1, 8, 2, [(4, 1)]),  # the smallest number that holds 3 rows and that 2 shards divide
        (3, 4, 16, 1, [(3, 4)]),
        (3, 4, 8, 2, [(2, 4)] * 2),
        (5, 2, 6, 2, [(6, 1)] * 2),  # 3 prompts on 2 shards: each completion has a forward pass of its own
    ],
)
def test_batches_are_as_small_as_the_shards_allow(data, monkeypatch, problems, samples, batch, devices, shapes):
    evaluator, found = evaluator_of(data, batch, devices), []

    def noted(model, config, completions, *ids):
        run = compiled(model, config, completions, *ids)
        return lambda params, prompts, *others: (found.append((len(prompts), completions)),
                                                 run(params, prompts, *others))[1]  # fmt: skip

    compiled = collect._sampling_program
    monkeypatch.setattr(collect, "_sampling_program", noted)
    level = evaluator.data.held_out["level 1"][:problems]
    model, key = evaluator.parts.model, jax.random.key(1)
    params = initialize(model, evaluator.parts.mesh, jax.random.key(0))
    scores = evaluator.scores(params, level, samples, key)
    assert found == shapes

    rows, budget = evaluator.parts.held_out.rows(level)
    tokens, ids = (np.repeat(rows[name], samples, axis=0) for name in ("tokens", "segment_ids"))
    lengths = []
    for start in range(0, len(tokens), batch):
        drawn = program(model, params, tokens[start : start + batch], ids[start : start + batch],
                        jax.random.fold_in(key, start), SamplingConfig(max_new_tokens=budget),
                        stop_ids=evaluator.data.stop_ids, banned=evaluator.parts.banned_ids)  # fmt: skip
        lengths += drawn.mask.sum(axis=1).tolist()
    np.testing.assert_array_equal(scores.rewards.ravel(), lengths)
