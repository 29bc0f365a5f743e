"""Ratios of tokens sharded over a mesh with AxisType.Explicit axes, compared with one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from rljax import algorithms

B, T = 4, 128


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["ctpo", "minpro", "gspo"])
def test_tokens_that_are_split(name, packed):
    rng = np.random.default_rng(0)
    log_ratio = rng.normal(size=(B, T), scale=0.1).astype(np.float32)
    A = np.broadcast_to(np.float32([[1], [-1], [2], [-0.5]]), (B, T))
    mask = rng.random((B, T)) < 0.8
    segments = np.where(mask, 1 + np.arange(T) // 50, 0).astype(np.int32) if packed else mask
    ratio = getattr(algorithms, name)().ratio

    @jax.jit
    def run(log_ratio, A, segments):
        loss = lambda log_ratio: jnp.sum(jnp.sin(ratio(log_ratio, A, segments)))  # noqa: E731
        return jax.value_and_grad(loss)(log_ratio)

    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    inputs = log_ratio, A, segments
    value, gradient = run(*inputs)
    there = run(*jax.device_put(inputs, NamedSharding(mesh, P("data", "tensor"))))
    np.testing.assert_allclose(there[0], value, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(there[1], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())
    assert np.abs(gradient).max() > 0.05
