"""Kernels on a mesh with axes of AxisType.Explicit, the default of `jax.make_mesh`, against one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import segmented_cummin, segmented_cumsum, token_kl, token_stats, token_topk
from tests.kernels.heads import close

N, D, V = 16, 8, 32
LAYOUTS = [(P("data"), P("tensor")), (P("data"), P()), (P(("data", "tensor")), P()), (P(None, "data"), P("tensor"))]


@cache
def mesh():
    return jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)


def put(x, spec):
    return jax.device_put(x, NamedSharding(mesh(), spec))


@cache
def head():
    rng = np.random.default_rng(0)
    hidden, unembedding, bias = (rng.normal(size=size).astype(np.float32) for size in ((N, D), (V, D), V))
    return hidden, unembedding, bias, rng.integers(0, V, N).astype(np.int32), np.arange(N) % 4 > 0


def of_head(implementation, hidden, unembedding, bias, targets, mask):
    weight = jnp.cos(jnp.arange(N, dtype=jnp.float32))
    given = {"bias": bias, "temperature": 0.7, "implementation": implementation}

    def loss(hidden, unembedding, bias):
        options = given | {"bias": bias}
        stats = token_stats(hidden, unembedding, targets, mask=mask, softcap=2.0, **options)
        kl = token_kl(hidden, unembedding, hidden[:, ::-1], unembedding, mask, **options)
        return sum(jnp.sum(x * weight) for x in (*stats, kl)), (*stats, kl)

    gradients, found = jax.grad(loss, (0, 1, 2), has_aux=True)(hidden, unembedding, bias)
    return gradients, found, token_topk(hidden, unembedding, targets, k=3, mask=mask, **given)


@cache
def right():
    return jax.jit(partial(of_head, "reference"))(*head())


@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize(("rows", "weight"), LAYOUTS, ids=str)
def test_of_a_head(implementation, rows, weight):
    vector = P(*rows[:1])
    arrays = [put(x, spec) for x, spec in zip(head(), (rows, weight, weight, vector, vector), strict=True)]
    gradients, stats, top = jax.jit(partial(of_head, implementation))(*arrays)
    close((gradients, stats, top), right(), 2e-6)
    assert all(np.abs(gradient).max() > 0.1 for gradient in gradients)
    for x in jax.tree.leaves((stats, top)):
        assert jax.typeof(x).sharding.spec[0] == vector[0]
    for gradient, x in zip(gradients, arrays, strict=False):
        assert jax.typeof(gradient).sharding.spec == jax.typeof(x).sharding.spec


def test_without_jit_and_by_keyword():
    hidden, unembedding, bias, targets, _ = head()
    found = token_stats(hidden=put(hidden, P("data")), unembedding=put(unembedding, P("tensor")), targets=targets,
                        bias=put(bias, P("tensor")))  # fmt: skip
    close(found, token_stats(hidden, unembedding, targets, bias=bias), 2e-6)


def of_rows(implementation, x, ids):
    weight = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    given = {"implementation": implementation}

    def loss(x):
        up, down = segmented_cumsum(x, ids, **given), segmented_cummin(x, ids, reverse=True, **given)
        return jnp.sum(up * weight) + jnp.sum(jnp.where(jnp.isfinite(down), down, 0) * weight), (up, down)

    return jax.grad(loss, has_aux=True)(x)


@pytest.mark.parametrize("implementation", [None, "reference", "chunked"])
@pytest.mark.parametrize("spec", [P("data", "tensor"), P(None, ("data", "tensor")), P("data")], ids=str)
def test_of_rows_whose_tokens_are_sharded(implementation, spec):
    x = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)
    ids = np.where(np.arange(32) % 5 > 0, 1 + np.arange(32) // 12, 0).astype(np.int32) * np.ones((4, 1), np.int32)
    gradient, found = jax.jit(partial(of_rows, implementation))(put(x, spec), put(ids, spec))
    truth, expected = jax.jit(partial(of_rows, "reference"))(x, ids)
    close(gradient, truth, 1e-6)
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6)
        assert jax.typeof(a).sharding.spec == jax.typeof(put(x, spec)).sharding.spec
    assert np.abs(gradient).max() > 0.1
