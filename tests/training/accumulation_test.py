import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.training.step.accumulation import accumulate


def loss(params, rows):
    value = jnp.sum(rows["w"] * jnp.tanh(rows["x"] @ params["a"]))
    return value, {"rows": jnp.sum(rows["w"])}


@pytest.mark.parametrize("microbatches", [2, 3, 6])
def test_the_sum_over_microbatches_is_the_sum(microbatches):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"a": jax.random.normal(keys[0], (5,))}
    rows = {"x": jax.random.normal(keys[1], (6, 5)), "w": jax.random.uniform(keys[2], (6,))}
    (value, aux), gradient = accumulate(loss, params, rows, 1)
    (value_m, aux_m), gradient_m = accumulate(loss, params, rows, microbatches)
    np.testing.assert_allclose(value_m, value, rtol=1e-6)
    np.testing.assert_allclose(aux_m["rows"], aux["rows"], rtol=1e-6)
    np.testing.assert_allclose(gradient_m["a"], gradient["a"], rtol=1e-5, atol=1e-6)
    assert np.abs(gradient["a"]).max() > 0.1


def test_one_microbatch_less_is_seen():
    """Mutant: dropping the last rows changes the gradient by far more than the tolerance above."""
    params, rows = {"a": jnp.ones(5)}, {"x": jnp.eye(6, 5), "w": jnp.ones(6)}
    _, whole = accumulate(loss, params, rows, 2)
    _, cut = accumulate(loss, params, jax.tree.map(lambda x: x[:4], rows), 2)
    assert np.abs(whole["a"] - cut["a"]).max() > 0.1
