"""Infinite bounds in a config: as JSON in the run's folder, in the value loss and in an optimizer step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from rljax import algorithms, penalty
from rljax.objective import Batch
from rljax.training import CriticConfig, OptimizerConfig
from rljax.training.checkpoint.folder import identity, write_json
from rljax.training.description import differences
from tests.training.one_step import MESHES, config_of, one_step
from tests.training.tiny import config as tiny


def test_a_config_with_infinite_bounds_is_plain_json(tmp_path):
    bounds = {"optimizer": OptimizerConfig(learning_rate=1e-3, clip_norm=np.inf), "critic": CriticConfig(limit=np.inf)}
    unbounded = identity(dataclasses.replace(tiny, **bounds))
    write_json(tmp_path / "config.json", unbounded)
    assert json.loads((tmp_path / "config.json").read_text()) == unbounded
    changes = differences(unbounded, identity(tiny))
    assert changes == ["critic.limit: 'inf' -> 0.2", "optimizer.clip_norm: 'inf' -> 1.0"]


def test_an_infinite_limit_never_clips_a_value():
    batch = Batch(mask=jnp.ones(3, bool), old_logp=jnp.zeros(3), advantages=jnp.zeros(3), weights=jnp.ones(3))
    values, returns, old = jnp.array([0.0, 2.0, -30.0]), jnp.ones(3), jnp.array([0.0, 0.0, 20.0])

    def loss(values, limit):
        return penalty.value_loss(values, batch, returns=returns, old_values=old, limit=limit)

    for limit in (np.inf, jnp.inf, 1e9):
        value, gradient = jax.value_and_grad(loss)(values, limit)
        np.testing.assert_allclose(value, 0.5 * (1 + 1 + 31**2), rtol=1e-6)
        np.testing.assert_allclose(gradient, values - returns, rtol=1e-6)
    traced = jax.jit(jax.value_and_grad(loss))(values, jnp.float32(jnp.inf))
    np.testing.assert_array_equal(traced[1], values - returns)


def test_a_step_with_infinite_bounds_is_one_with_wide_bounds():
    one, other = (one_step(config_of(algorithms.ppo(), critic=CriticConfig(limit=x)), MESHES[0]) for x in (np.inf, 1e9))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert one[0]["grad_norm"] > 1e-3
