import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import divergence


def random_policies(seed, shape=(7, 12)):
    x, z = np.random.default_rng(seed).normal(size=(2, *shape)) * 2
    return (np.exp(y) / np.exp(y).sum(-1, keepdims=True) for y in (x, z))


@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_total_variation_of_k_tokens_and_the_rest(k):
    p, q = random_policies(0)
    likeliest = np.argsort(-q, axis=-1)[:, :k]
    top_p, top_q = (np.take_along_axis(x, likeliest, axis=-1) for x in (p, q))
    expected = []
    for a, b in zip(top_p, top_q, strict=True):
        rest = abs((1 - a.sum()) - (1 - b.sum()))
        expected.append((sum(abs(x - y) for x, y in zip(a, b, strict=True)) + rest) / 2)
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(divergence.total_variation)(np.log(top_p), np.log(top_q)))
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    whole = 0.5 * np.abs(p - q).sum(-1)
    assert np.all(ours <= whole + 1e-12)
    if k == 12:
        np.testing.assert_allclose(ours, whole, rtol=1e-12)


def test_without_gradient_and_0_for_the_same_policy():
    p, _ = random_policies(1)
    assert not np.any(jax.jit(divergence.total_variation)(np.log(p), np.log(p)))
    slope = jax.jit(jax.grad(lambda x: jnp.sum(divergence.total_variation(x, np.zeros((7, 12))))))
    assert not np.any(slope(np.log(p)))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"logp has shape \(2, 3\): expected \(2, 4\), as old_logp"):
        divergence.total_variation(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
