import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import token_stats
from rljax import Batch, aggregation, algorithms, distillation, policy_loss
from rljax.objective import required_fields
from tests import papers
from tests.examples import ALGORITHMS, make
from tests.laws_test import (
    ADVANTAGES,
    AGGREGATIONS,
    LOSS,
    RATIOS,
    advantages,
    assert_same,
    every_advantage,
    every_aggregation,
    every_ratio,
    losses,
    random_rollouts,
    random_rows,
    weights,
)
from tests.together import together

DEVICES = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
SMALL, LARGE = (2, 3, 70), (5, 8, 300)  # P, G, T; from 65 tokens on a scan has two levels


def over_devices(f, *specs):
    return jax.shard_map(lambda *args: lax.psum(f(*args), "data"), mesh=DEVICES, in_specs=specs, out_specs=P())


@cache
def all_at_once():
    """Two microbatches with rows sharded over devices: psummed losses, gradients, and the donated inputs."""
    logp, batch = jax.tree.map(lambda x: x.reshape(2, 4, 10), random_rows())

    def step(logp, batch):
        return {
            name: jax.value_and_grad(jax.checkpoint(partial(policy_loss, ratio=f)))(logp[name], batch)
            for name, f in RATIOS.items()
        }

    def summed(logp, batch):
        found = jax.vmap(step)(logp, batch)
        return {name: (lax.psum(values, "data"), gradients) for name, (values, gradients) in found.items()}

    split = P(None, "data")
    mapped = jax.shard_map(summed, mesh=DEVICES, in_specs=split, out_specs=dict.fromkeys(RATIOS, (P(), split)))
    donated, batch = jax.device_put((dict.fromkeys(RATIOS, logp), batch), NamedSharding(DEVICES, split))
    return jax.jit(mapped, donate_argnums=0)(donated, batch), donated


@every_ratio
def test_jit_shard_map_vmap_grad_and_checkpoint_with_a_donated_buffer(name):
    found, donated = all_at_once()
    value, gradient = losses(*random_rows())[name]
    assert np.max(np.abs(gradient)) > 0.1
    assert donated[name].is_deleted()
    values, gradients = found[name]
    assert_same((jnp.sum(values), gradients.reshape(8, 10)), (value, gradient))


@every_ratio
def test_a_psum_is_differentiated_from_outside(name):
    """Traces every ratio, whose types must match, and compares the numbers of one ratio that uses a scan."""
    logp, batch = random_rows()
    f = RATIOS[name]
    total = jax.value_and_grad(over_devices(partial(policy_loss, ratio=f), P("data"), P("data")))
    assert jax.eval_shape(total, logp, batch)[1].shape == logp.shape
    if name == "ctpo":
        assert_same(jax.jit(total)(logp, batch), losses(logp, batch)[name])


def test_weights_made_on_a_shard_are_noticed():
    logp, batch = random_rows()
    batch = dataclasses.replace(batch, advantages=np.ones((8, 10), np.float32))

    def mutant(logp, batch):
        w = aggregation.token_mean(batch.mask[None], np.ones((1, 2), np.float32))[0]
        return policy_loss(logp, dataclasses.replace(batch, weights=w), RATIOS["token"])

    sign = np.ones((1, 8), np.float32)
    batch = dataclasses.replace(batch, weights=aggregation.token_mean(batch.mask[None], sign)[0])
    whole = LOSS(logp, batch, RATIOS["token"])[0]
    assert abs(jax.jit(over_devices(mutant, P("data"), P("data")))(logp, batch) / whole) > 1.5


def random_tokens():
    rng = np.random.default_rng(0)
    hidden, unembedding = (rng.normal(size=(n, 6)).astype(np.float32) for n in (16, 11))
    return hidden, unembedding, rng.integers(-1, 11, 16).astype(np.int32)


@pytest.mark.parametrize("stats_of", [token_stats, partial(token_stats, tile=(3, 4), implementation="chunked")])
def test_token_stats_under_shard_map_sum_the_gradient_of_the_whole_unembedding(stats_of):
    def total(*args):
        stats = stats_of(*args)
        return jnp.sum(stats.logp) + 2 * jnp.sum(stats.entropy) + 3 * jnp.sum(stats.proxy)

    gradient = partial(jax.value_and_grad, argnums=(0, 1))
    expected = jax.jit(gradient(total))(*random_tokens())
    assert all(np.max(np.abs(x)) > 0.1 for x in expected[1])
    assert_same(jax.jit(gradient(over_devices(total, P("data"), P(), P("data"))))(*random_tokens()), expected)


def test_a_teachers_top_tokens_under_shard_map():
    hidden, unembedding, _ = random_tokens()
    top = partial(distillation.top_tokens, k=3, tile=4)
    split = jax.shard_map(top, mesh=DEVICES, in_specs=(P("data"), P()), out_specs=P("data"))
    (ids, logits), expected = jax.jit(split)(hidden, unembedding), top(hidden, unembedding)
    np.testing.assert_array_equal(ids, expected[0])
    assert_same(logits, expected[1])


def stacked(*trees):
    return jax.tree.map(lambda *x: np.stack(x), *trees)


@together
def mapped_advantages(*rollouts):
    return jax.vmap(advantages.__wrapped__)(*rollouts)


@every_advantage
def test_jit_of_vmap_of_advantages(name):
    rollouts = [random_rollouts(seed) for seed in (1, 2)]
    A = mapped_advantages(*stacked(*rollouts))[name]
    assert_same(A, stacked(*[advantages(*rollout)[name] for rollout in rollouts]))
    assert np.max(np.abs(A)) > 0.1


@every_advantage
def test_advantages_trace_under_shard_map(name):
    """With whole groups per device; functions of the whole batch must be called outside."""
    f = ADVANTAGES[name]
    shapes = rollout_shapes(f, 8, 3, 5)
    specs = jax.tree.map(lambda x: P("data") if x.ndim else P(), shapes)
    split = jax.shard_map(lambda r, m, given: f(r, m, **given), mesh=DEVICES, in_specs=specs, out_specs=P("data"))
    assert jax.eval_shape(split, *shapes).shape == (8, 3, 5)


@together
def mapped_weights(masks, signs):
    return jax.vmap(weights.__wrapped__)(masks, signs)


@every_aggregation
def test_jit_of_vmap_of_aggregations(name):
    masks = np.stack([papers.random_rollouts(seed)[1] for seed in (1, 2)])
    signs = np.random.default_rng(0).integers(-1, 2, masks.shape[:3])
    w = mapped_weights(masks, signs)[name]
    assert_same(w, np.stack([weights(mask, sign)[name] for mask, sign in zip(masks, signs, strict=True)]))
    assert np.max(w) > 0


def test_a_schedule_in_the_step_compiles_once():
    logp, batch = random_rows()

    @jax.jit
    def step(step, logp, batch):
        algorithm = algorithms.holder_po(p=algorithms.holder_schedule(step, steps=4))
        return jax.value_and_grad(policy_loss)(logp, batch, algorithm.ratio)

    gradients = [step(i, logp, batch)[1] for i in range(3)]
    assert step._cache_size() == 1
    assert_same(gradients[1], LOSS(logp, batch, algorithms.holder_po(p=1.0).ratio)[1], 1e-5)
    assert not papers.agree(gradients[0], gradients[2], 1e-3)


# Size of programs, traced without values, so that no Python code branches on values.


def equations(jaxpr) -> int:
    """The number of equations in a jaxpr and its sub-jaxprs, plus the number of elements of all their constants."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values())) if hasattr(x, "eqns")]
    return len(jaxpr.eqns) + sum(map(np.size, getattr(jaxpr, "consts", ()))) + sum(map(equations, inner))


def size(function, *shapes) -> int:
    return equations(jax.make_jaxpr(function)(*shapes))


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def rollout_shapes(f, P, G, T):
    fields = {name: array(P, G, T) for name in ("proxy", "energy", "importance", "values")} | {
        "tokens": array(P, G, T, dtype=jnp.int32),
        "greedy_rewards": array(P),
        "components": array(P, G, 2),
        "task": array(P, dtype=jnp.int32),
        "improvement": array(),
        "dropping": array(dtype=jnp.bool_),
    }
    return array(P, G), array(P, G, T, dtype=jnp.bool_), {name: fields[name] for name in required_fields(f)}


def loss_size(f, *shape) -> int:
    x, mask = array(*shape), array(*shape, dtype=jnp.bool_)
    batch = Batch(mask=mask, old_logp=x, advantages=x, weights=x, divergence=x)
    return size(jax.value_and_grad(partial(policy_loss, ratio=f)), x, batch)


def packed_loss_size(f, *shape) -> int:
    x, mask, ids = array(*shape), array(*shape, dtype=jnp.bool_), array(*shape, dtype=jnp.int32)
    batch = Batch(mask=mask, old_logp=x, advantages=x, weights=x, divergence=x, segment_ids=ids)
    return size(jax.value_and_grad(partial(policy_loss, ratio=f)), x, batch)


def advantage_size(f, *shape) -> int:
    return size(lambda rewards, mask, fields: f(rewards, mask, **fields), *rollout_shapes(f, *shape))


def aggregation_size(f, *shape) -> int:
    return size(f, array(*shape, dtype=jnp.bool_), array(*shape[:2]))


def algorithm_size(algorithm, *shape) -> int:
    def step(rewards, mask, fields, logp):
        A = algorithm.advantage(rewards, mask, **fields)
        w = algorithm.aggregation(mask, aggregation.side(A, mask))
        batch = Batch(mask=mask, old_logp=logp, advantages=A, weights=w, divergence=logp)
        return jax.value_and_grad(policy_loss)(logp, batch, algorithm.ratio)

    return size(step, *rollout_shapes(algorithm.advantage, *shape), array(*shape))


EVERYTHING = {
    **{f"ratio {name}": partial(loss_size, f) for name, f in RATIOS.items()},
    **{f"packed ratio {name}": partial(packed_loss_size, f) for name, f in RATIOS.items()},
    **{f"advantage {name}": partial(advantage_size, f) for name, f in ADVANTAGES.items()},
    **{f"aggregation {name}": partial(aggregation_size, f) for name, f in AGGREGATIONS.items()},
    **{f"algorithm {name}": partial(algorithm_size, make(name)) for name in ALGORITHMS},
}


OF_ALGORITHMS = {f"packed ratio {name}" for name in algorithms.__all__}  # composed of functions measured separately


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(measure, id=name, marks=[pytest.mark.slow] * (name in OF_ALGORITHMS))
        for name, measure in EVERYTHING.items()
    ],
)
def test_a_program_does_not_grow_with_prompts_completions_or_tokens(measure):
    """Programs for fewer than 65 tokens, whose scans have one level, are not larger."""
    assert 0 < measure(2, 3, 5) <= measure(*SMALL) == measure(*LARGE)


def test_a_loop_over_tokens_and_a_constant_as_long_as_they_are_are_noticed():
    def loop(log_ratio, advantages, segments):
        return jnp.stack([log_ratio[..., t] for t in range(log_ratio.shape[-1])], axis=-1)

    def constant(log_ratio, advantages, segments):
        return log_ratio + np.linspace(0, 1, log_ratio.shape[-1], dtype=np.float32)[None, None]

    for mutant in (loop, constant):
        assert loss_size(mutant, *LARGE) > loss_size(mutant, *SMALL) + 100
