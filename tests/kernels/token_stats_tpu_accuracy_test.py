"""The TPU kernels of token_stats on bfloat16, against float64: no less exact than dense logits on a matrix unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import token_stats
from pallas_kernels.token_stats import _tpu_backward, _tpu_forward
from tests.kernels.heads import enable_x64, example, gradients
from tests.kernels.token_stats_tpu_test import interpreter

N, D, V = 128, 96, 900


def dense(hidden, unembedding, targets):
    return token_stats(hidden, unembedding, targets, implementation="reference")


@jax.custom_vjp
def product(hidden, unembedding):
    """Logits [N, V] in float32; their gradients are products of bfloat16 summed in float32, all that a unit has."""
    return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=jnp.float32)


def _transposed(inputs, dz):
    hidden, unembedding = inputs
    dz = dz.astype(jnp.bfloat16)
    dh = jnp.einsum("nv,vd->nd", dz, unembedding, preferred_element_type=jnp.float32)
    dw = jnp.einsum("nv,nd->vd", dz, hidden, preferred_element_type=jnp.float32)
    return dh.astype(hidden.dtype), dw.astype(unembedding.dtype)


product.defvjp(lambda *inputs: (product(*inputs), inputs), _transposed)


def dense_on_a_matrix_unit(hidden, unembedding, targets):
    """The definition, from logits in float32."""
    return dense(product(hidden, unembedding), jnp.eye(V), targets)


def pallas(hidden, unembedding, targets):
    return token_stats(hidden, unembedding, targets, tile=(128, 256), implementation="tpu")


def errors(function, monkeypatch):
    """(∂hidden, ∂unembedding, logp, entropy, proxy) of the function: the relative error of each, and the outputs."""
    hidden, unembedding, targets = example(N, D, V, jnp.bfloat16, scale=D**-0.5, absent=False)
    with enable_x64():
        wide = (jnp.asarray(x).astype(jnp.float64) for x in (hidden, unembedding))
        truth = jax.tree.map(np.asarray, jax.jit(gradients(dense, targets))(*wide))
    with interpreter(monkeypatch, checked=False):
        found = jax.jit(gradients(function, targets))(hidden, unembedding)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True)
    return [np.linalg.norm(np.asarray(f, np.float64) - t) / np.linalg.norm(t) for f, t in pairs], found[1], truth[1]


def test_no_output_and_no_gradient_is_less_exact_than_the_dense_ones(monkeypatch):
    ours, stats, truth = errors(pallas, monkeypatch)
    for mine, theirs in zip(ours, errors(dense_on_a_matrix_unit, monkeypatch)[0], strict=True):
        assert mine <= 1.1 * theirs + 1e-7
        assert mine < 5e-3
    collision, exact = (s.proxy - 1 + 2 * np.exp(np.asarray(s.logp, np.float64)) for s in (stats, truth))
    np.testing.assert_allclose(collision, exact, rtol=1e-4)
    assert np.min(stats.proxy) >= -1e-6


@pytest.mark.parametrize(
    ("module", "dtype", "spoilt"), [(_tpu_forward, jnp.bfloat16, (2, 3, 4)), (_tpu_backward, jnp.float8_e4m3fn, (0, 1))]
)
def test_products_with_fewer_digits_are_seen(monkeypatch, module, dtype, spoilt):
    exact = errors(dense_on_a_matrix_unit, monkeypatch)[0]
    dot = module.dot
    monkeypatch.setattr(module, "dot", lambda *inputs: dot(*inputs).astype(dtype).astype(jnp.float32))
    found = errors(pallas, monkeypatch)[0]
    assert all(found[i] > 1.1 * exact[i] + 1e-7 for i in spoilt)
