import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rljax.models.experts import Experts
from rljax.models.layers import RMSNorm


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_norm_is_rounded_once_at_its_end(shift):
    """In bfloat16 1 + w would lose w = 1/1000, and a product of rounded factors would be rounded twice."""
    rng = np.random.default_rng(0)
    x = jnp.bfloat16(rng.normal(size=(50, 64)))
    scale = np.float32(1 - shift + rng.normal(size=64) / 1000)
    norm = RMSNorm(64, 1e-6, shift)
    norm.scale[...] = jnp.asarray(scale)
    wide = np.float64(x)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * (shift + np.float64(scale))
    assert np.mean(np.asarray(norm(x)) == np.asarray(jnp.bfloat16(exact))) > 0.999


@pytest.mark.parametrize("renormalize", [True, False])
def test_a_router_computes_in_float32_and_chooses_the_most_likely_experts(renormalize):
    experts = Experts(32, 8, 16, 3, renormalize, jax.nn.silu, 0.1, nnx.Rngs(params=0))
    x = jnp.bfloat16(np.random.default_rng(1).normal(size=(2, 20, 32)))
    odds = np.exp(np.float64(x) @ np.float64(experts.router[...]))
    pi = odds / odds.sum(-1, keepdims=True)
    expected = np.where(pi >= np.sort(pi, axis=-1)[..., -3:-2], pi, 0)
    if renormalize:
        expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(experts.weights(x), expected, rtol=1e-5, atol=1e-7)
