"""The train step: one loss and one gradient, whatever the mesh and the microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.models import TransformerConfig, create
from rljax.objective import Rollouts
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask
from rljax.training import Config, LikelihoodConfig, MeshConfig, OptimizerConfig, RolloutConfig
from rljax.training.gradients import State
from rljax.training.likelihood import make_update as make_likelihood_update
from rljax.training.mesh import make_mesh, to_devices
from rljax.training.optimizer import init_state, make_optimizer
from rljax.training.policy import make_prepare, make_update

pytestmark = pytest.mark.standard_promotion

MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]
PLAIN = OptimizerConfig(learning_rate=1.0, b1=0.0, b2=0.0, clip_norm=1e9)  # the update tells the gradient's sign


def config_of(algorithm, microbatches=1, **more):
    return Config(
        task=StringsTask(),
        algorithm=algorithm,
        model=TransformerConfig(
            vocab_size=19, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp=64, max_length=32
        ),
        rollout=RolloutConfig(prompts=4, completions=8, prompt_length=4, sampling=SamplingConfig(max_new_tokens=8)),
        optimizer=dataclasses.replace(PLAIN, microbatches=microbatches),
        **more,
    )


def rollouts_of(config):
    """Random rollouts with ragged completions, a tool token in the middle of one, and an absent completion."""
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
    )


def mesh_of(sizes):
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def one_step(config, sizes):
    """(metrics, change of the parameters) of one optimizer step by plain gradient descent."""
    import optax

    mesh, optimizer = mesh_of(sizes), optax.sgd(1.0)
    model, params = create(config.model, mesh, jax.random.key(0))
    start = jax.device_get(params)
    rollouts = to_devices(rollouts_of(config), mesh, P())
    advantages, ref_logp = make_prepare(config, model, mesh)(params, params, rollouts, jnp.int32(0))
    state = State(params, init_state(optimizer, params))
    state, metrics = make_update(config, model, mesh, optimizer)(state, rollouts, advantages, ref_logp, jnp.int32(0))
    return jax.device_get(metrics), jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params))


def assert_same_step(ours, theirs, rtol):
    (metrics, gradient), (their_metrics, their_gradient) = ours, theirs
    for name in ("loss", "grad_norm", "entropy", "kl", "clip_share"):
        np.testing.assert_allclose(metrics[name], their_metrics[name], rtol=rtol, atol=1e-7, err_msg=name)
    assert length(their_gradient) > 1e-3
    assert length(less(gradient, their_gradient)) <= rtol * length(their_gradient)


def length(tree):
    return np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(tree)))


def less(a, b):
    return jax.tree.map(np.subtract, a, b)


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_the_mesh_changes_nothing(sizes):
    config = config_of(algorithms.dapo())
    assert_same_step(one_step(config, sizes), one_step(config, MESHES[0]), 1e-5)


@pytest.mark.parametrize("algorithm", [algorithms.dapo(), algorithms.gspo(), algorithms.ctpo(), algorithms.otb()])
def test_microbatches_change_nothing_but_memory(algorithm):
    """The weights are a measure over the optimizer step, so the parts add: no mean of means anywhere."""
    whole, parts = (one_step(config_of(algorithm, m), MESHES[0]) for m in (1, 4))
    assert_same_step(parts, whole, 1e-6)


def test_a_mean_over_microbatch_means_would_be_seen():
    """The mutant: weights made within each microbatch change the gradient by far more than the tolerance."""
    config = config_of(algorithms.dapo())
    whole = one_step(config, MESHES[0])[1]
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        part = jax.tree.map(lambda x, half=half: x[half], rollouts_of(config))
        mesh = mesh_of(MESHES[0])
        import optax

        model, params = create(config.model, mesh, jax.random.key(0))
        start = jax.device_get(params)
        part = to_devices(part, mesh, P())
        advantages, ref_logp = make_prepare(config, model, mesh)(params, params, part, jnp.int32(0))
        state = State(params, init_state(optax.sgd(0.5), params))
        state, _ = make_update(config, model, mesh, optax.sgd(0.5))(state, part, advantages, ref_logp, jnp.int32(0))
        halves.append(jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params)))
    mean = jax.tree.map(jnp.add, *halves)
    assert length(less(mean, whole)) > 1e-2 * length(whole)


def test_a_penalty_is_simply_added():
    """With the start as reference and old_logp elsewhere, k3 of logp − ref_logp is 0 and so is its gradient."""
    plain = one_step(config_of(algorithms.grpo()), MESHES[0])
    with_kl = one_step(
        config_of(algorithms.grpo(), penalty=lambda stats, batch: penalty.kl(stats.logp, batch)), MESHES[0]
    )
    assert_same_step(with_kl, plain, 1e-5)

    def with_bonus(c):
        bonus = lambda stats, batch: c * penalty.entropy_bonus(stats.entropy, batch)  # noqa: E731
        return one_step(config_of(algorithms.grpo(), penalty=bonus), MESHES[0])

    half, whole = with_bonus(0.5), with_bonus(1.0)
    assert whole[0]["loss"] < half[0]["loss"] - 0.5 < plain[0]["loss"] - 1.0  # entropies of about ln 19 nats
    bonus = less(whole[1], plain[1])
    assert length(bonus) > 1e-3
    assert length(less(bonus, jax.tree.map(lambda x: 2 * x, less(half[1], plain[1])))) < 1e-3 * length(bonus)


def test_a_schedule_is_traced():
    """p = schedule(step) inside the jitted step: one compilation, another p."""

    def annealed(step):
        return algorithms.holder_po(p=algorithms.holder_schedule(step, start=2.0, end=-2.0, steps=10))

    constant = one_step(config_of(algorithms.holder_po(p=2.0)), MESHES[0])
    assert_same_step(one_step(config_of(annealed), MESHES[0]), constant, 1e-6)


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_stage_one_is_the_same_on_every_mesh(sizes):
    settings = LikelihoodConfig(steps=1, rows=16, row_length=12, optimizer=OptimizerConfig(microbatches=2))
    model_config, rollouts = config_of(algorithms.grpo()).model, rollouts_of(None)
    rows = {name: getattr(rollouts, name).reshape(32, 12)[:16] for name in ("tokens", "segment_ids", "mask")}

    def step(sizes):
        mesh, optimizer = mesh_of(sizes), make_optimizer(settings.optimizer)
        model, params = create(model_config, mesh, jax.random.key(0))
        state = State(params, init_state(optimizer, params))
        return make_likelihood_update(settings, model, mesh, optimizer)(state, to_devices(rows, mesh))[1]

    ours, theirs = step(sizes), step((1, 1, 1))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-5)


def test_a_mesh_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"mesh \(data, fsdp, tensor\) = \(3, 1, 1\): expected .* the 8 devices"):
        make_mesh(MeshConfig(data=3))
