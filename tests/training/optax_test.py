"""Optax optimizers in a recipe: their steps, their state in checkpoints and their settings in the config."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from rljax.models import MeshConfig, ShardingRules, make_mesh
from rljax.training import commands
from rljax.training.checkpoint.folder import identity
from rljax.training.optimizer import abstract_state
from tests.training.in_process import call, train
from tests.training.subprocesses import TINY, metrics
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def rate(step):
    return 0.01 * (step + 1)


def short(folder, data, optimizer, **more):
    settings = {"steps": 1, "likelihood": dataclasses.replace(tiny.likelihood, steps=0), "run": folder} | more
    rollout, task = dataclasses.replace(tiny.rollout, minibatches=1), dataclasses.replace(tiny.task, data_dir=data)
    evaluation = dataclasses.replace(tiny.evaluation, kl_start=True)  # keeps a copy of the first parameters
    return dataclasses.replace(tiny, optimizer=optimizer, rollout=rollout, task=task, evaluation=evaluation, **settings)


def moved(stage):
    change = jax.tree.map(lambda a, b: np.ravel(np.asarray(a) - np.asarray(b)), stage.state.params, stage.reference)
    return np.concatenate(jax.tree.leaves(change))


def test_lion_behind_a_clip_under_a_schedule(tmp_path, data):
    """Each step of Lion is ± the learning rate if the gradient is not 0."""
    lion = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(rate, weight_decay=0.0))
    first = moved(train(short(tmp_path / "one", data, lion)))
    assert np.mean(np.isclose(np.abs(first), 0.01, rtol=1e-3)) > 0.3
    assert np.all(np.isclose(np.abs(first), 0.01, rtol=1e-3) | (first == 0))
    both = np.abs(moved(train(short(tmp_path / "two", data, lion, steps=2))))
    assert set(np.round(np.unique(both[both > 1e-4]), 4)) <= {np.float32(x) for x in (0.01, 0.02, 0.03)}
    assert both.max() > 0.029


def test_adafactor_trains_and_its_factors_are_saved(tmp_path, data):
    """The second moment of a large matrix is stored as a row and a column, and a resumed run is bit-identical."""
    wide = dataclasses.replace(tiny.model, width=128, mlp=256)
    settings = {"model": wide, "checkpoint_every": 1}
    whole = train(short(tmp_path / "whole", data, optax.adafactor(1e-2), steps=2, **settings))
    shapes = {x.shape for x in jax.tree.leaves(whole.state.opt)}
    assert {(128,), (256,)} <= shapes
    assert (128, 256) not in shapes
    train(short(tmp_path / "halves", data, optax.adafactor(1e-2), steps=1, **settings))
    halves = train(short(tmp_path / "halves", data, optax.adafactor(1e-2), steps=2, **settings))
    jax.tree.map(np.testing.assert_array_equal, halves.state, whole.state)


def test_multisteps_accumulates_over_rollouts_and_survives_a_restart(tmp_path, data):
    optimizer = optax.MultiSteps(optax.adamw(1e-2), 2)
    one = train(short(tmp_path / "halves", data, optimizer, checkpoint_every=1))
    assert not moved(one).any()
    halves = train(short(tmp_path / "halves", data, optimizer, steps=2))
    whole = train(short(tmp_path / "whole", data, optimizer, steps=2))
    assert np.abs(moved(whole)).max() > 5e-3
    jax.tree.map(np.testing.assert_array_equal, halves.state, whole.state)


RECIPE = """
import dataclasses, optax
from tests.training.tiny import config
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(optax.linear_schedule(1e-3, 0.0, {steps})))
likelihood = dataclasses.replace(config.likelihood, steps=1, optimizer=optax.MultiSteps(optax.sgd({rate}), 4))
config = dataclasses.replace(config, optimizer=optimizer, likelihood=likelihood)
"""


def test_a_recipe_with_an_optimizer_of_its_own_is_overridden_and_recognized(tmp_path, data):
    recipe, run = tmp_path / "recipe.py", tmp_path / "run"

    def command(*more, steps=10, rate=0.1):
        recipe.write_text(RECIPE.format(steps=steps, rate=rate))
        return call(commands.train, recipe, "--run", run, "--task.data-dir", data, *more, cwd=tmp_path)

    code, output = command("--steps", 1, "--evaluation.every", 0)
    assert code == 0, output
    assert len(metrics(run, "rl")) == 1
    code, output = command("--optimizer.learning-rate", 1)
    assert code == 2
    assert "--optimizer.learning-rate" in output
    code, output = command("--steps", 2, "--evaluation.every", 0)
    assert code == 0, output
    assert "resuming from rl step 1" in output
    for other in ({"steps": 11}, {"rate": 0.2}):
        code, output = command("--steps", 3, **other)
        assert code == 1
        assert "belongs to another config" in output
        assert "optimizer" in output
    report = (run / "report.html").read_text()
    assert "scale_by_lion" in report


def test_the_tiny_recipe_still_takes_adamw_from_the_command_line(tmp_path, data):
    overrides = ("--optimizer.learning-rte", 1e-4)
    code, output = call(commands.train, TINY, "--run", tmp_path / "run", *overrides, cwd=tmp_path)
    assert code == 2
    assert "--optimizer.learning-rate" in output


def test_an_optimizers_identity_holds_its_numbers_and_no_address():
    described = str(identity(dataclasses.replace(tiny, optimizer=optax.MultiSteps(optax.adafactor(3e-3), 7))))
    assert "0.003" in described
    assert "7" in described
    assert " at 0x" not in described


@pytest.mark.parametrize("optimizer", [
    optax.adamw(1e-3), optax.lion(1e-3), optax.MultiSteps(optax.adamw(1e-3), 2).gradient_transformation(),
    optax.masked(optax.adam(1e-3), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
], ids=["adamw", "lion", "multisteps", "masked"])  # fmt: skip
def test_what_is_as_large_as_a_parameter_is_split_like_it(optimizer):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = tiny.model.build(vocab_size=50, value_head=False, rules=ShardingRules()).abstract_params(mesh)
    large = [x for x in jax.tree.leaves(abstract_state(optimizer, params)) if x.ndim > 1]
    assert len(large) >= len([x for x in jax.tree.leaves(params) if x.ndim > 1])
    assert all(len(x.sharding.spec) == x.ndim and any(x.sharding.spec) for x in large)
