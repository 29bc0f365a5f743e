"""Tests that packing sequences into rows and splitting groups over devices change neither loss nor gradient."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from rljax import Batch, Rollouts, aggregation, policy_loss
from rljax.objective import advantages_of
from tests import papers
from tests.examples import ALGORITHMS as EXAMPLES
from tests.examples import make

SHAPE = (4, 8, 6)  # 32 sequences, two per row; two rows per device
ALGORITHMS = {name: make(name) for name in EXAMPLES}
IDS = np.repeat(np.array([[1, 2]], np.int32), SHAPE[-1], axis=1).repeat(16, axis=0)


def rollout():
    """A rollout of ragged groups with tool tokens inside the completions, and log π of a policy that has moved."""
    rewards, mask, _ = papers.random_rollouts(0, SHAPE)
    rng = np.random.default_rng(0)
    fields = papers.random_fields(0, rewards, mask) | {
        "dropping": np.array(True),
        "old_logp": rng.normal(size=SHAPE) - 2,
    }
    known = {f.name for f in dataclasses.fields(Rollouts)}
    rollouts = Rollouts(rewards=rewards, mask=mask, **{name: x for name, x in fields.items() if name in known})
    l = rng.normal(size=SHAPE) * rng.choice([1e-4, 0.02, 0.3], SHAPE[:2])[..., None]
    holes = (np.cumsum(mask, -1) > 0) & ~mask & (np.cumsum(mask[..., ::-1], -1)[..., ::-1] > 0)
    assert holes.sum() > 10
    return rollouts, rollouts.old_logp + l


def whole_batch(algorithm, rollouts) -> Batch:
    A = advantages_of(algorithm.advantage, rollouts)
    w = algorithm.aggregation(rollouts.mask, aggregation.side(A, rollouts.mask))
    divergence = np.abs(np.random.default_rng(1).normal(size=SHAPE)) * 0.1
    return Batch(mask=rollouts.mask, old_logp=rollouts.old_logp, advantages=A, weights=w, divergence=divergence)


def packed(x, order):
    return x.reshape(-1, SHAPE[-1])[order].reshape(-1, 2 * SHAPE[-1])


def devices_loss(logp, batch, ratio):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def own(logp, batch):
        return jax.lax.psum(policy_loss(logp, batch, ratio), "data")

    return jax.shard_map(own, mesh=mesh, in_specs=P("data"), out_specs=P())(logp, batch)


@pytest.fixture(scope="module")
def both():
    order = np.random.default_rng(2).permutation(32)
    assert all(len({*(order[4 * d : 4 * d + 4] // 8)}) > 1 for d in range(8))

    @jax.jit
    def run(rollouts, logp):
        out = {}
        for name, algorithm in ALGORITHMS.items():
            batch = whole_batch(algorithm, rollouts)
            rows = dataclasses.replace(jax.tree.map(partial(packed, order=order), batch), segment_ids=IDS)
            loss, gradient = jax.value_and_grad(policy_loss)(logp, batch, algorithm.ratio)
            there = jax.value_and_grad(devices_loss)(packed(logp, order), rows, algorithm.ratio)
            out[name] = (loss, packed(gradient, order)), there
        return out

    with jax.enable_x64(True):
        return jax.device_get(run(*rollout()))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_group_split_over_rows_and_devices_is_the_same_step(name, both):
    (loss, gradient), (loss_there, gradient_there) = both[name]
    assert papers.agree(loss_there, loss, 1e-12)
    assert papers.agree(gradient_there, gradient, 1e-12)
    assert np.count_nonzero(gradient) > 10
