"""Errors of token_stats' TPU kernels in bfloat16 are at most 10 % above those of dense logits on a matrix unit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import token_stats
from pallas_kernels.token_stats.tpu import backward_tile, forward
from tests.kernels.heads import enable_x64, example, gradients
from tests.kernels.token_stats_tpu_test import interpreter

N, D, V = 128, 96, 900


def dense(hidden, unembedding, targets):
    return token_stats(hidden, unembedding, targets, implementation="reference")


@jax.custom_vjp
def product(hidden, unembedding):
    """Logits [N, V] in float32; gradients are products of bfloat16 summed in float32, as on a TPU's matrix unit."""
    return jnp.einsum("nd,vd->nv", hidden, unembedding, preferred_element_type=jnp.float32)


def _transposed(inputs, dz):
    hidden, unembedding = inputs
    dz = dz.astype(jnp.bfloat16)
    dh = jnp.einsum("nv,vd->nd", dz, unembedding, preferred_element_type=jnp.float32)
    dw = jnp.einsum("nv,nd->vd", dz, hidden, preferred_element_type=jnp.float32)
    return dh.astype(hidden.dtype), dw.astype(unembedding.dtype)


product.defvjp(lambda *inputs: (product(*inputs), inputs), _transposed)


def dense_on_a_matrix_unit(hidden, unembedding, targets):
    return dense(product(hidden, unembedding), jnp.eye(V), targets)


def pallas(hidden, unembedding, targets):
    return token_stats(hidden, unembedding, targets, tile=(128, 256), implementation="tpu")


@functools.cache
def inputs():
    return [np.asarray(x) for x in example(N, D, V, jnp.bfloat16, scale=D**-0.5, absent=False)]


@functools.cache
def truth():
    """((∂hidden, ∂unembedding), (logp, entropy, proxy)) in float64 from the same inputs."""
    *arrays, targets = inputs()
    with enable_x64():
        return jax.device_get(jax.jit(gradients(dense, targets))(*(x.astype(np.float64) for x in arrays)))


def of_kernels(monkeypatch):
    *arrays, targets = inputs()
    with interpreter(monkeypatch, checked=False):
        return jax.device_get(jax.jit(gradients(pallas, targets))(*arrays))


def errors(found, exact):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
    return [np.linalg.norm(f.astype(np.float64) - t) / np.linalg.norm(t) for f, t in pairs]


@functools.cache
def least():
    *arrays, targets = inputs()
    return errors(jax.device_get(jax.jit(gradients(dense_on_a_matrix_unit, targets))(*arrays)), truth())


def test_outputs_and_gradients_are_as_exact_as_those_of_dense_logits(monkeypatch):
    found = of_kernels(monkeypatch)
    for mine, theirs in zip(errors(found, truth()), least(), strict=True):
        assert mine <= 1.1 * theirs + 1e-7
        assert mine < 5e-3
    stats = found[1]
    collision, exact = (s.proxy - 1 + 2 * np.exp(s.logp.astype(np.float64)) for s in (stats, truth()[1]))
    np.testing.assert_allclose(collision, exact, rtol=1e-4)
    assert np.min(stats.proxy) >= -1e-6


def with_fewer_digits(monkeypatch, module, dtype):
    dot = module.dot
    monkeypatch.setattr(module, "dot", lambda *inputs: dot(*inputs).astype(dtype).astype(jnp.float32))


def test_sums_of_logits_with_fewer_digits_are_seen(monkeypatch):
    with_fewer_digits(monkeypatch, forward, jnp.bfloat16)
    with interpreter(monkeypatch, checked=False):
        stats = jax.device_get(jax.jit(pallas)(*inputs()))
    assert all(error > 1.1 * bound + 1e-7 for error, bound in zip(errors(stats, truth()[1]), least()[2:], strict=True))


def test_gradients_with_fewer_digits_are_seen(monkeypatch):
    with_fewer_digits(monkeypatch, backward_tile, jnp.float8_e4m3fn)
    found = of_kernels(monkeypatch)[0]
    assert all(error > 1.1 * bound + 1e-7 for error, bound in zip(errors(found, truth()[0]), least()[:2], strict=True))
