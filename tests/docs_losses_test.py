"""The pages of docs/losses: their code runs, and the equalities that they state hold."""

import dataclasses
import re
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec as P

from rljax import advantage, make_batch, policy_loss, ratio
from rljax.objective import required_fields
from tests.pages import blocks
from tools.imports import ROOT

PAGES = {path.stem: path for path in sorted((ROOT / "docs/losses").glob("*.md"))}
THIRD_PARTY = re.compile(r"^(?:import|from) (?:equinox|flax|optax)\b", flags=re.M)


@cache
def run(name: str) -> dict:
    names = {"__name__": name}
    for block in blocks(PAGES[name]):
        exec(block, names)
    return names


def marked(name: str):
    other = [pytest.mark.standard_promotion] if THIRD_PARTY.search(PAGES[name].read_text(encoding="utf-8")) else []
    return pytest.param(name, marks=other)


@pytest.mark.parametrize("name", [marked(name) for name in PAGES])
def test_the_code_of_a_page_runs(name):
    assert blocks(PAGES[name])
    run(name)


@pytest.mark.standard_promotion
def test_linen_nnx_and_equinox_agree():
    names = run("flax")
    linen, loss_of, batch = names["start"]["params"], names["loss_of"], names["batch"]
    table, (kernel, bias) = linen["embed"]["embedding"], (linen["dense"][name] for name in ("kernel", "bias"))
    model = names["Nnx"](nnx.Rngs(0))
    model.embed.embedding[...], model.dense.kernel[...], model.dense.bias[...] = table, kernel, bias
    other = eqx.tree_at(
        lambda m: (m.embed.weight, m.dense.weight, m.dense.bias), names["eqx_model"], (table, kernel.T, bias)
    )
    losses = [loss_of(model, batch), loss_of(other, batch)]
    np.testing.assert_allclose(losses, [names["linen_loss"]] * 2, rtol=1e-5)


@pytest.mark.standard_promotion
def test_multisteps_by_default_divides_by_the_number_of_microbatches():
    names = run("accumulation")
    params, parts, stepped, K = (names[name] for name in ("params", "parts", "stepped", "K"))
    big = stepped(optax.sgd(1.0), [jax.tree.map(lambda *g: sum(g), *parts)])
    multiplied = [jax.tree.map(lambda g: K * g, part) for part in parts]
    assert optax.tree.allclose(stepped(optax.MultiSteps(optax.sgd(1.0), K), multiplied), big, atol=1e-6)
    small = stepped(optax.MultiSteps(optax.sgd(1.0), K), parts)
    moved, expected = (jax.tree.map(jnp.subtract, after, params) for after in (small, big))
    assert optax.tree.allclose(moved, jax.tree.map(lambda x: x / K, expected), atol=1e-6)
    assert optax.tree.norm(expected) > 0.1


def test_the_gradient_inside_a_shard_map_is_already_summed():
    """Unless check_vma is False."""
    names = run("sharding")
    loss, mesh, params, batch = (names[name] for name in ("loss", "auto", "params", "batch"))
    axes = ("data", "tensor")

    def inside(function, **options):
        specs = {"in_specs": (P(), P(axes)), "out_specs": P()}
        gradient = jax.jit(jax.shard_map(function, mesh=mesh, **specs, **options))(params, batch)
        return gradient["unembedding"]

    def summed(*arguments):
        return lax.psum(jax.grad(loss)(*arguments), axes)

    expected = names["expected"]["unembedding"]
    np.testing.assert_allclose(inside(jax.grad(loss)), expected, atol=1e-6)
    np.testing.assert_allclose(inside(summed), 8 * expected, atol=1e-5)
    np.testing.assert_allclose(inside(summed, check_vma=False), expected, atol=1e-6)


def test_a_hole_is_a_false_mask_or_segment_id_0():
    names = run("packing")
    packed, f = names["packed"], names["algorithm"].ratio
    inside, logp, holes = names["inside"], packed(names["logp"]), ~names["inside"].mask
    expected = names["packed_loss"]
    zero = dataclasses.replace(inside, mask=jnp.ones_like(holes), segment_ids=jnp.where(holes, 0, inside.segment_ids))
    for batch in (zero, dataclasses.replace(inside, segment_ids=zero.segment_ids)):
        assert policy_loss(jnp.where(holes, jnp.nan, logp), batch, f) == expected
    without = policy_loss(logp, dataclasses.replace(inside, segment_ids=None), f)
    assert abs(without - expected) > 0.01 * abs(expected)


def test_the_table_of_token_rewards_is_of_every_advantage():
    rows = re.findall(r"^\| (`.*?) \|", PAGES["turns"].read_text(), flags=re.M)
    to_go, total, neither = (re.findall(r"`(\w+)`", row) for row in rows[1:])
    assert sorted([*to_go, *total, *neither]) == sorted(
        {*advantage.__all__} - {"standardized", "whiten", "whitened", "without_negatives"}
    )
    rng = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(6) < np.array([[4, 6, 5], [6, 6, 3]])[..., None]).at[:, :, 1].set(False)
    fields = {name: jnp.full(mask.shape, 0.3) for name in ("values", "proxy", "energy")}
    fields |= {"tokens": jnp.asarray(rng.integers(0, 2, mask.shape)), "greedy_rewards": jnp.ones(2),
               "task": jnp.arange(2), "components": jnp.asarray(rng.normal(size=(2, 3, 2)), jnp.float32),
               "improvement": 0.1}  # fmt: skip
    early, tool = (jnp.zeros(mask.shape).at[..., t].set(rng.normal(size=(2, 3))) for t in (0, 1))
    given = {
        "early": early,
        "late": jnp.roll(early, 2, axis=-1),
        "tool": early + tool,
        "outcome": jnp.sum(early, axis=-1),
    }
    functions = {name: getattr(advantage, name) for name in (*to_go, *total, *neither)}

    @jax.jit
    def advantages(given, fields):
        bound = {
            name: partial(f, mask=mask, **{n: fields[n] for n in required_fields(f)}) for name, f in functions.items()
        }
        return {name: {k: f(rewards) for k, rewards in given.items()} for name, f in bound.items()}

    for name, A in advantages(given, fields).items():
        assert np.allclose(A["early"], A["late"], atol=1e-5) == (name not in to_go), name
        np.testing.assert_allclose(A["early"], A["tool"], atol=1e-6)  # a reward on a masked token is ignored
        assert name in to_go or np.allclose(A["early"], A["outcome"], atol=1e-5), name


def test_ids_that_differ_per_turn_pool_per_turn():
    names = run("turns")
    turns, batch = names["turns"], names["per_turn"]
    x = jax.random.normal(jax.random.key(0), turns.shape)
    pooled = ratio.sequence_mean(x, x, jnp.where(batch.mask, batch.segment_ids, 0))
    for turn in (1, 2):
        np.testing.assert_allclose(pooled[0, 0][turns[0, 0] == turn], x[0, 0][turns[0, 0] == turn].mean(), rtol=1e-6)


@pytest.mark.parametrize("wrong", [
    lambda log_ratio, advantages, segments: 2 * log_ratio,
    lambda log_ratio, advantages, segments: log_ratio + jnp.mean(log_ratio, axis=-1, keepdims=True),
    lambda log_ratio, advantages, segments: jnp.cumsum(log_ratio, axis=-1),
], ids=["slope", "row", "running"])  # fmt: skip
def test_the_check_of_an_own_ratio_notices_a_wrong_one(wrong):
    with pytest.raises(AssertionError):
        run("own")["check"](wrong)


def test_own_functions_make_a_batch():
    rollouts = run("index")["rollouts"]
    batch = make_batch(run("own")["algorithm"], rollouts)
    np.testing.assert_allclose(jnp.sum(batch.weights), 1, rtol=1e-6)
    np.testing.assert_array_equal(batch.advantages[~batch.mask], 0)
    assert set(np.unique(batch.advantages)) == {-0.5, 0.0, 0.5, 1.0}
