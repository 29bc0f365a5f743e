import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import Decoder, ShardingRules, create
from rljax.models.sharding import RULES, split_rows
from tests.models.small import CONFIG, VARIANTS, mesh_of, packed_rows


def _rows(mesh):
    tokens, segment_ids = (np.tile(x, (4, 1)) for x in packed_rows())
    tokens = (tokens + np.arange(8, dtype=np.int32)[:, None]) % 11
    return jax.device_put((tokens, segment_ids), NamedSharding(mesh, P(("data", "fsdp"))))


@functools.cache
def _loss_and_gradient(shape, config=CONFIG, rules=RULES):
    mesh = mesh_of(shape)
    model, params = create(config, mesh, jax.random.key(0), rules)

    def loss(params, tokens, segment_ids):
        hidden = model.hidden(params, tokens, segment_ids)
        logits = jnp.einsum("btd,vd->btv", hidden, model.unembedding(params))
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(segment_ids[:, 1:] != 0, logp, 0)), hidden

    (value, hidden), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, *_rows(mesh))
    return params, value, hidden, gradient


@pytest.mark.parametrize("shape", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 2, 2)], ids=str)
def test_values_loss_and_gradients_are_the_same_on_every_mesh(shape):
    expected, found = (jax.device_get(_loss_and_gradient(mesh)) for mesh in ((1, 1, 1), shape))
    assert all(np.abs(x).max() > 1e-4 for x in jax.tree.leaves(expected[3]))  # a zero gradient would not pass
    params, *rest = found
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9), params, expected[0])
    for got, wanted in zip(jax.tree.leaves(rest), jax.tree.leaves(expected[1:]), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("name", "rules"), [("gemma", RULES), ("experts", RULES), ("experts", ShardingRules(experts="data"))]
)
def test_every_family_is_the_same_on_a_mesh(name, rules):
    config = dataclasses.replace(VARIANTS[name], qkv_bias=True)
    expected, found = _loss_and_gradient((1, 1, 1), config), _loss_and_gradient((2, 2, 2), config, rules)
    if name == "experts":
        assert found[0]["blocks"][0]["mlp"]["gate"].sharding.spec == P(rules.experts, "fsdp", "tensor")
    for got, wanted in zip(*(jax.tree.leaves(jax.device_get(x[1:])) for x in (found, expected)), strict=True):
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_parameters_are_sharded_by_the_rules_and_rows_are_split():
    mesh = mesh_of((2, 2, 2))
    params, _, hidden, gradient = _loss_and_gradient((2, 2, 2))
    attention = params["blocks"][0]["attention"]
    assert params["embedding"].sharding.spec == P("tensor", "fsdp")
    assert attention["query"].sharding.spec == attention["key"].sharding.spec == P("fsdp", "tensor", None)
    assert attention["out"].sharding.spec == P("tensor", None, "fsdp")
    assert params["blocks"][0]["mlp"]["down"].sharding.spec == P("tensor", "fsdp")
    assert attention["query"].addressable_shards[0].data.shape == (8, 2, 4)
    assert hidden.addressable_shards[0].data.shape == (2, 12, 16)
    expected = NamedSharding(mesh, P("fsdp", "tensor", None))
    assert gradient["blocks"][0]["attention"]["query"].sharding.is_equivalent_to(expected, 3)


def test_abstract_parameters_are_those_created():
    mesh, (params, *_) = mesh_of((2, 2, 2)), _loss_and_gradient((2, 2, 2))
    describe = lambda x: (x.shape, x.dtype, x.sharding)  # noqa: E731
    assert jax.tree.map(describe, Decoder(CONFIG).abstract_params(mesh)) == jax.tree.map(describe, params)


def test_the_key_decides_the_values():
    mesh = mesh_of((1, 1, 1))
    draws = [create(CONFIG, mesh, jax.random.key(seed))[1]["embedding"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.any(np.asarray(draws[0]) == np.asarray(draws[2]))


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"width": 18}, (1, 4, 1), "mesh fsdp = 4: expected a divisor of 'embed' = 18"),
        ({"kv_heads": 2}, (1, 1, 4), "mesh tensor = 4: expected a divisor of 'kv_heads' = 2"),
        ({"mlp": 25}, (1, 1, 2), r"mesh tensor = 2: expected a divisor of 'mlp' = 25.*\['mlp'\]"),
    ],
)
def test_a_mesh_that_does_not_divide_is_an_error(change, shape, message):
    with pytest.raises(ValueError, match=message):
        create(dataclasses.replace(CONFIG, **change), mesh_of(shape), jax.random.key(0))


def test_a_mesh_without_the_axes_is_an_error():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"mesh has the axes \('data',\): expected \('data', 'fsdp', 'tensor'"):
        create(CONFIG, mesh, jax.random.key(0))


def test_rows_that_do_not_divide_or_are_on_another_mesh_are_unchanged():
    mesh, other = mesh_of((2, 2, 2)), jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    three, eight = np.ones((3, 2), np.float32), np.ones((8, 2), np.float32)
    for rows in (jax.device_put(three, NamedSharding(mesh, P())), jax.device_put(eight),
                 jax.device_put(eight, NamedSharding(other, P("x")))):  # fmt: skip
        np.testing.assert_array_equal(jax.jit(functools.partial(split_rows, rules=RULES))(rows), rows)
