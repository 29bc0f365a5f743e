"""Helpers that take one optimizer step of a small policy on random rollouts, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from rljax.models import TransformerConfig, initialize
from rljax.objective import Rollouts
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask
from rljax.training import Config, RolloutConfig
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update, summarize
from rljax.training.step.scoring import Scorer, make_prepare
from tests.models.small import mesh_of

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


@functools.cache
def config_of(algorithm, microbatches=1, **more):
    """A small config, cached so that `one_step` can cache its results."""
    return Config(
        task=StringsTask(),
        algorithm=algorithm,
        model=TransformerConfig(
            vocab_size=19, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64, max_length=32
        ),
        rollout=RolloutConfig(
            prompts=4,
            completions=8,
            prompt_length=4,
            sampling=SamplingConfig(max_new_tokens=8),
            microbatches=microbatches,
        ),
        **more,
    )


def rollouts_of(config):
    """Random rollouts of completions of different lengths; one is fully masked and one has a masked tool token."""
    draw = np.random.default_rng(0)
    shape = (4, 8, 12)
    lengths = draw.integers(1, 9, shape[:2])
    column = np.arange(12)
    mask = (column >= 4) & (column < 4 + lengths[..., None])
    mask[1, 2] = False
    mask[0, 0, 5] = False
    segment_ids = np.where(column < 2, 0, (column < 4 + lengths[..., None]).astype(np.int32)).astype(np.int32)
    return Rollouts(
        tokens=draw.integers(4, 19, shape).astype(np.int32),
        mask=mask,
        rewards=draw.integers(0, 2, shape[:2]).astype(np.float32),
        old_logp=np.where(mask, -3.0 + 0.3 * draw.standard_normal(shape), 0.0).astype(np.float32),
        segment_ids=segment_ids,
        greedy_rewards=draw.integers(0, 2, 4).astype(np.float32),
        task=np.array([0, 1, 0, 1], np.int32),
    )


def scorer_of(config, sizes=(1, 1, 1)):
    config_of_model, critic = config.model, "values" in config.needs
    model = config_of_model.build(vocab_size=config_of_model.vocab_size, value_head=critic, rules=config.sharding)
    return Scorer(model, mesh_of(sizes), config.rollout.sampling.temperature)


@functools.cache
def _host_params(model, seed):
    return jax.device_get(initialize(model, mesh_of((1, 1, 1)), jax.random.key(seed)))


def params_of(scorer, seed=0):
    """Initial parameters on the scorer's mesh; host copies are cached, since initialization must be compiled."""
    shardings = jax.tree.map(lambda x: x.sharding, scorer.model.abstract_params(scorer.mesh))
    return jax.device_put(_host_params(scorer.model, seed), shardings)


def prepare(config, scorer, params, rollouts, step=0):
    """(Prepared, carried state) of rollouts; `params` are also the reference parameters."""
    algorithm = config.algorithm_at(step)
    state = algorithm.carried.init() if algorithm.carried else ()
    return make_prepare(config, scorer)(params, params, rollouts, state, algorithm)


@functools.cache
def one_step(config, sizes, step=0):
    """(metrics, start − end parameters) of one step of gradient descent with learning rate 1; cached."""
    scorer, optimizer = scorer_of(config, sizes), optax.sgd(1.0)
    params, start = params_of(scorer), _host_params(scorer.model, 0)
    rollouts = to_devices(rollouts_of(config), scorer.mesh, P())
    prepared, _ = prepare(config, scorer, params, rollouts, step)
    state, reference = (
        State(params, init_state(optimizer, params)),
        jax.tree.map(jnp.copy, params),
    )  # the state is donated
    state, sums = make_update(config, scorer, optimizer)(state, reference, prepared, config.algorithm_at(step))
    return jax.device_get(summarize([sums])), jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params))


def assert_same_step(ours, theirs, rtol):
    (metrics, gradient), (their_metrics, their_gradient) = ours, theirs
    for name in ("loss", "grad_norm", "entropy", "kl", "clip_share"):
        np.testing.assert_allclose(metrics[name], their_metrics[name], rtol=rtol, atol=1e-7, err_msg=name)
    assert length(their_gradient) > 1e-3
    assert length(less(gradient, their_gradient)) <= rtol * length(their_gradient)


def recorded(run, log):
    """The result of `run()`, and what its callbacks appended to the list `log`."""
    log.clear()
    found = jax.block_until_ready(run())
    jax.effects_barrier()
    return found, list(log)


def length(tree):
    return np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))


def less(a, b):
    return jax.tree.map(np.subtract, a, b)
