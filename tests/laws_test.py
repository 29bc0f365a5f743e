"""Laws that all ratios, advantages, aggregations and algorithms satisfy; the lists come from the modules."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rljax import Batch, advantage, aggregation, policy_loss, ratio
from rljax.objective import required_fields
from tests import papers
from tests.examples import ALGORITHMS, bound, make
from tests.together import together

COMBINATORS = ("chain", "local_gradient", "standardized", "whiten", "whitened", "without_negatives")
RETURNS = ("discounted_returns", "generalized_advantage_estimation")  # a constant outcome does not give 0
BATCH_WIDE = ("multi_reward", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "task_relative")
NO_GROUP = (*RETURNS, "max_rl", "multi_reward", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax")


RATIOS = {name: bound(ratio, name) for name in ratio.__all__ if name not in COMBINATORS}
RATIOS |= {name: make(name).ratio for name in ALGORITHMS}
seen = [(f.func, f.keywords) if isinstance(f, partial) else f for f in RATIOS.values()]
RATIOS = {name: f for i, (name, f) in enumerate(RATIOS.items()) if seen[i] not in seen[:i]}  # some are equal
ADVANTAGES = {name: bound(advantage, name) for name in advantage.__all__ if name not in COMBINATORS}
ADVANTAGES |= {
    f"{combine.__name__} {name}": combine(getattr(advantage, name))
    for combine, name in (
        (advantage.standardized, "pass_at_k"),
        (advantage.whitened, "leave_one_out"),
        (advantage.without_negatives, "mean_baseline"),
    )
}
AGGREGATIONS = {name: bound(aggregation, name) for name in aggregation.__all__ if name != "side"}
LOSS = jax.jit(jax.value_and_grad(policy_loss), static_argnums=2)
every_ratio = pytest.mark.parametrize("name", RATIOS)
every_advantage = pytest.mark.parametrize("name", ADVANTAGES)
every_aggregation = pytest.mark.parametrize("name", AGGREGATIONS)


@together
def losses(logp, batch):
    return {name: jax.value_and_grad(policy_loss)(logp, batch, f) for name, f in RATIOS.items()}


def random_rows(seed=0, shape=(8, 10)):
    """log π and a float32 Batch; rows have holes, and advantages are constant in each row."""
    l, A, w, mask = papers.random_batch(seed, shape)
    old = np.random.default_rng(seed).normal(size=shape) - 3
    divergence = np.random.default_rng(seed).uniform(0, 0.2, shape)
    logp, old, A, w, divergence = (x.astype(np.float32) for x in (old + l, old, A, w, divergence))
    return logp, Batch(mask=mask, old_logp=old, advantages=A, weights=w, divergence=divergence)


def rows(f, logp, batch):
    return f(logp), jax.tree.map(f, batch)


def cast(dtype, *trees):
    return jax.tree.map(lambda x: x if x.dtype == bool else np.asarray(x, dtype), trees)


def spread(*arrays):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(arrays, NamedSharding(mesh, P("data")))


def assert_same(actual, expected, tolerance=2e-6):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.max(np.abs(b)), 1e-3))


# Ratios, tested through the loss.


def test_no_ratio_escapes():
    assert set(RATIOS) >= set(ratio.__all__) - set(COMBINATORS)


@every_ratio
def test_on_policy_the_gradient_is_reinforces(name):
    """−w A, if advantages and weights are constant in each sequence."""
    _, batch = random_rows()
    equal = np.repeat(batch.weights[:, :1], 10, axis=1)
    expected = np.where(batch.mask, -equal * batch.advantages, 0)
    assert_same(losses(batch.old_logp, dataclasses.replace(batch, weights=equal))[name][1], expected)
    assert np.max(np.abs(expected)) > 0.1  # a zero gradient fails


@every_ratio
def test_what_masked_places_hold_changes_nothing(name):
    logp, batch = random_rows()
    expected = losses(logp, batch)[name]
    assert np.isfinite(expected[0])
    spoilt = rows(lambda x: x if x.dtype == bool else np.where(batch.mask, x, np.float32("nan")), logp, batch)
    jax.tree.map(np.testing.assert_array_equal, losses(*spoilt)[name], expected)


@every_ratio
def test_padding_and_the_order_of_rows_change_nothing(name):
    logp, batch = random_rows()
    batch = dataclasses.replace(batch, mask=batch.mask & (np.arange(10) < 5))
    value, gradient = losses(logp, batch)[name]
    order = np.random.default_rng(0).permutation(8)
    for move in (partial(np.roll, shift=3, axis=-1), lambda x: x[order]):
        assert_same(losses(*rows(move, logp, batch))[name], (value, move(gradient)))


def packed(x):
    return x.reshape(4, -1)


SEGMENT_IDS = packed(np.repeat(np.array([[1], [2]] * 4, np.int32), 10, axis=1))


@every_ratio
def test_packing_changes_nothing_and_microbatches_add(name):
    """Includes prompt and tool tokens, which have segment ids but are masked."""
    logp, batch = random_rows()
    value, gradient = losses(logp, batch)[name]

    def with_ids(f):
        logp_there, batch_there = rows(f, logp, batch)
        return losses(logp_there, dataclasses.replace(batch_there, segment_ids=SEGMENT_IDS))[name]

    assert_same(with_ids(packed), (value, packed(gradient)), 1e-6)
    halves = [slice(0, 4), slice(4, 8)]
    parts = [with_ids(lambda x, half=half: np.pad(x[half], ((0, 0), (0, 10)))) for half in halves]
    assert_same(parts[0][0] + parts[1][0], value)
    assert_same(np.concatenate([part[1][:, :10] for part in parts]), gradient)


@pytest.mark.parametrize("name", ["sequence_mean", "cumulative", "prefix_min", "power_mean", "position_clip"])
def test_packing_without_ids_is_noticed(name):
    logp, batch = random_rows()
    gradient = losses(logp, batch)[name][1]
    mutant = LOSS(packed(logp), jax.tree.map(packed, batch), RATIOS[name])[1]
    assert not papers.agree(mutant, packed(gradient), 1e-3)


@every_ratio
def test_an_empty_mask_gives_zero(name):
    logp, batch = random_rows()
    nothing = dataclasses.replace(batch, mask=np.zeros_like(batch.mask))
    value, gradient = losses(logp * np.float32("nan"), nothing)[name]
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logp))


@every_ratio
def test_bfloat16_is_accumulated_in_float32_and_float64_gives_float64(name):
    low = cast(jnp.bfloat16, *random_rows())
    value = losses(*low)[name][0]
    assert value.dtype == jnp.float32
    assert_same(value, losses(*cast(np.float32, *low))[name][0])
    with jax.enable_x64(True):
        exact, gradient = losses(*cast(np.float64, *low))[name]
    assert exact.dtype == gradient.dtype == jnp.float64
    assert_same(value, exact, 1e-5)


@every_ratio
def test_sharding_changes_nothing(name):
    logp, batch = random_rows()
    logp_there, batch_there = spread(logp, batch)
    assert len(logp_there.devices()) == 8
    assert_same(losses(logp_there, batch_there)[name], losses(logp, batch)[name])


# Advantages.


@together
def advantages(rewards, mask, fields):
    return {n: f(rewards, mask, **{name: fields[name] for name in required_fields(f)}) for n, f in ADVANTAGES.items()}


def random_rollouts(seed):
    rewards, mask, _ = papers.random_rollouts(seed)
    return rewards, mask, papers.random_fields(seed, rewards, mask)


def each(f, fields, axes):
    """Applies f to the fields with at least this many axes."""
    return {name: f(x) if np.ndim(x) >= axes else x for name, x in fields.items()}


def but(*names):
    return pytest.mark.parametrize("name", [name for name in ADVANTAGES if name.split()[0] not in names])


@but(*RETURNS)
def test_a_constant_outcome_gives_exactly_zero(name):
    _, mask, fields = random_rollouts(0)
    mask[0] &= name != "max_rl"  # max_rl does not give 0 in a group of one
    for value in (0.1, -7.3, 1e6):
        rewards = np.full(mask.shape[:2], value, np.float32)
        same = {"greedy_rewards": rewards[:, 0], "components": np.stack([rewards] * 2, -1)}
        np.testing.assert_array_equal(advantages(rewards, mask, fields | same)[name], np.zeros(mask.shape))


@but(*NO_GROUP, "whitened")
def test_a_group_of_one_has_no_advantage(name):
    rewards, mask, fields = random_rollouts(1)
    np.testing.assert_array_equal(advantages(rewards, mask, fields)[name][0], np.zeros(mask.shape[1:]))


@every_advantage
def test_advantages_ignore_the_absent_the_masked_and_the_order(name):
    rewards, mask, fields = random_rollouts(1)
    A = advantages(rewards, mask, fields)[name]
    assert np.max(np.abs(A)) > 0.1
    np.testing.assert_array_equal(np.where(mask, 0, A), np.zeros(mask.shape))
    present = mask.any(-1)

    def spoil(x):
        where = mask if x.shape == mask.shape else present[..., None]
        return x if x.dtype == np.int32 else np.where(where, x, np.nan)

    spoilt = each(spoil, fields, 3)
    np.testing.assert_array_equal(advantages(np.where(present, rewards, np.nan), mask, spoilt)[name], A)
    order = np.array([3, 0, 4, 2, 1])
    moved = advantages(rewards[:, order], mask[:, order], each(lambda x: x[:, order], fields, 2))
    assert_same(moved[name], A[:, order])


@every_advantage
def test_padding_changes_no_advantage(name):
    rewards, mask, fields = random_rollouts(1)
    pad = partial(np.pad, pad_width=((0, 0), (2, 1), (1, 2)))
    padded = each(pad, fields, 3)
    padded["components"] = np.pad(fields["components"], ((0, 0), (2, 1), (0, 0)))
    A = advantages(np.pad(rewards, ((0, 0), (2, 1))), pad(mask), padded)[name]
    assert_same(A[:, 2:-1, 1:-2], advantages(rewards, mask, fields)[name])


def two_steps():
    one, two = random_rollouts(1), random_rollouts(2)
    return jax.tree.map(lambda x, y: np.concatenate([x, y]) if np.ndim(x) else x, one, two)


@every_advantage
def test_sharding_changes_no_advantage(name):
    rewards, mask, fields = two_steps()
    there = each(lambda x: spread(x)[0], fields, 1)
    assert_same(advantages(*spread(rewards, mask), there)[name], advantages(rewards, mask, fields)[name])


@but(*BATCH_WIDE, "whitened")
def test_groups_are_independent_so_shards_of_them_are(name):
    part = advantages(*random_rollouts(1))[name]
    assert_same(part, advantages(*two_steps())[name][:4])


@every_advantage
def test_advantages_of_bfloat16_are_float32_of_float64_float64(name):
    rewards, mask, fields = random_rollouts(3)
    low = each(lambda x: x if x.dtype == np.int32 else jnp.asarray(x, jnp.bfloat16), fields, 1)
    traced = partial(jax.eval_shape, advantages.__wrapped__)
    assert traced(jnp.asarray(rewards, jnp.bfloat16), mask, low)[name].dtype == jnp.float32
    with jax.enable_x64(True):
        assert traced(rewards, mask, fields)[name].dtype == jnp.float64


@every_advantage
def test_an_empty_rollout_has_no_advantage(name):
    rewards, mask, fields = random_rollouts(3)
    np.testing.assert_array_equal(advantages(rewards, np.zeros_like(mask), fields)[name], np.zeros(mask.shape))


# Aggregations.


@together
def weights(mask, sign):
    return {name: f(mask, sign) for name, f in AGGREGATIONS.items()}


@every_aggregation
def test_weights_follow_the_order_and_ignore_absence_and_padding(name):
    _, mask, _ = papers.random_rollouts(1)
    sign = np.random.default_rng(0).integers(-1, 2, mask.shape[:2])
    w = weights(mask, sign)[name]
    assert np.max(w) > 0
    np.testing.assert_array_equal(np.where(mask, 0, w), np.zeros(mask.shape))
    np.testing.assert_array_equal(weights(mask, np.where(mask.any(-1), sign, 1))[name], w)
    order = np.array([3, 0, 4, 2, 1])
    assert_same(weights(mask[:, order], sign[:, order])[name], w[:, order])
    pad = ((1, 2), (2, 1), (1, 2))
    assert_same(weights(np.pad(mask, pad), np.pad(sign, pad[:2]))[name][1:-2, 2:-1, 1:-2], w)


@every_aggregation
def test_sharded_weights_and_weights_of_nothing(name):
    mask = np.concatenate([papers.random_rollouts(seed)[1] for seed in range(2)])
    sign = np.random.default_rng(0).integers(-1, 2, mask.shape[:2])
    w = weights(mask, sign)[name]
    assert_same(weights(*spread(mask, sign))[name], w)
    np.testing.assert_array_equal(weights(np.zeros_like(mask), sign)[name], np.zeros(mask.shape))
    assert w.dtype == jnp.float32
    with jax.enable_x64(True):
        assert weights(mask, sign.astype(np.float64))[name].dtype == jnp.float64
