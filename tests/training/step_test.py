"""Optimizer steps give the same loss and gradient on every mesh and for every number of microbatches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.models import make_mesh
from rljax.training import LikelihoodConfig, MeshConfig, ShardingRules
from rljax.training.optimizer import init_state, make_optimizer
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State
from rljax.training.step.likelihood import make_update as make_likelihood_update
from rljax.training.step.policy import make_update
from rljax.training.step.scoring import make_prepare
from tests.training.one_step import (
    MESHES,
    assert_same_step,
    config_of,
    length,
    less,
    one_step,
    params_of,
    rollouts_of,
    scorer_of,
)

pytestmark = pytest.mark.standard_promotion

ALGORITHMS = {"dapo": algorithms.dapo(), "gspo": algorithms.gspo(), "ctpo": algorithms.ctpo(), "otb": algorithms.otb(),
              "ppo": algorithms.ppo(), "cppo": algorithms.cppo()}  # fmt: skip
GRPO, DAPO = config_of(algorithms.grpo()), config_of(ALGORITHMS["dapo"])


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_the_mesh_changes_nothing(sizes):
    assert_same_step(one_step(DAPO, sizes), one_step(DAPO, MESHES[0]), 1e-5)


@pytest.mark.parametrize("algorithm", [
    pytest.param(algorithm, id=name, marks=[pytest.mark.slow] * (name in ("gspo", "ctpo", "otb")))
    for name, algorithm in ALGORITHMS.items()
])  # fmt: skip
def test_microbatches_change_nothing_but_memory(algorithm):
    """Weights are normalized over the whole optimizer step, so microbatch losses add up to the total."""
    whole, parts = (one_step(config_of(algorithm, m), MESHES[0]) for m in (1, 4))
    assert_same_step(parts, whole, 1e-6)


def test_a_mean_over_microbatch_means_would_be_seen():
    """Mutant: weights normalized per microbatch change the gradient by far more than the tolerance."""
    whole = one_step(DAPO, MESHES[0])[1]
    scorer, optimizer = scorer_of(DAPO), optax.sgd(0.5)
    prepare, update = make_prepare(DAPO, scorer), make_update(DAPO, scorer, optimizer)
    halves = []
    for half in (slice(0, 2), slice(2, 4)):
        part = to_devices(jax.tree.map(lambda x, half=half: x[half], rollouts_of(DAPO)), scorer.mesh, P())
        params = params_of(scorer)
        start = jax.device_get(params)
        prepared, _ = prepare(params, params, part, (), DAPO.algorithm)
        state, _ = update(State(params, init_state(optimizer, params)), None, prepared, DAPO.algorithm)
        halves.append(jax.tree.map(lambda a, b: a - b, start, jax.device_get(state.params)))
    mean = jax.tree.map(jnp.add, *halves)
    assert length(less(mean, whole)) > 1e-2 * length(whole)


def test_a_penalty_is_simply_added():
    """The reference equals the policy, so k3 of logp − ref_logp and its gradient are 0."""
    plain = one_step(GRPO, MESHES[0])
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


def test_a_schedule_changes_an_argument():

    def annealed(step):
        return algorithms.holder_po(p=algorithms.holder_schedule(step, start=2.0, end=-2.0, steps=10))

    steps = [one_step(config_of(annealed), MESHES[0], step) for step in (0, 5)]
    for p, step in zip((2.0, 0.0), steps, strict=True):
        assert_same_step(step, one_step(config_of(algorithms.holder_po(p=p)), MESHES[0]), 1e-6)
    assert length(less(steps[0][1], steps[1][1])) > 1e-3 * length(steps[0][1])


@pytest.mark.parametrize("sizes", MESHES[1:])
def test_stage_one_is_the_same_on_every_mesh(sizes):
    settings, rollouts = LikelihoodConfig(steps=1, rows=16, row_length=12, microbatches=2), rollouts_of(None)
    rows = {name: getattr(rollouts, name).reshape(32, 12)[:16] for name in ("tokens", "segment_ids", "mask")}

    def step(sizes):
        scorer, optimizer = scorer_of(GRPO, sizes), make_optimizer(settings.optimizer)
        params = params_of(scorer)
        state = State(params, init_state(optimizer, params))
        there = to_devices(rows, scorer.mesh, P(scorer.model.rules.rows))
        return make_likelihood_update(settings.microbatches, scorer, optimizer)(state, there)[1]

    ours, theirs = step(sizes), step((1, 1, 1))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours["grad_norm"], theirs["grad_norm"], rtol=1e-5)


def test_the_rules_change_where_parameters_are_and_nothing_else():
    """With embed=None parameters are not sharded over fsdp, and rows are sharded over data only."""
    rules = ShardingRules(embed=None, rows=("data",))
    whole = config_of(ALGORITHMS["dapo"], sharding=rules)
    assert_same_step(one_step(whole, (2, 2, 2)), one_step(DAPO, MESHES[0]), 1e-5)
    for config, spec in ((whole, P("tensor", None)), (DAPO, P("tensor", "fsdp"))):
        scorer = scorer_of(config, (2, 2, 2))
        assert scorer.model.abstract_params(scorer.mesh)["embedding"].sharding.spec == spec


def test_a_mesh_that_does_not_divide_is_named():
    with pytest.raises(
        ValueError,
        match=r"mesh \(data, fsdp, tensor.*\) = \(3, 1, 1.*\): expected axis sizes that multiply to 8 devices",
    ):
        make_mesh(MeshConfig(data=3))
