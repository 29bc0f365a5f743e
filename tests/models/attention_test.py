import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.attention import attend, causal_mask, positions_of, rotate, rotation
from tests.models.small import CONFIG, packed_rows


def test_positions_and_mask_are_those_of_each_segment():
    _, segment_ids = packed_rows()
    positions, mask = positions_of(segment_ids), causal_mask(segment_ids)
    for b, row in enumerate(np.asarray(segment_ids)):
        for t in range(row.size):
            for s in range(row.size):
                assert mask[b, t, s] == (s <= t and row[s] == row[t] != 0)
            if row[t]:
                assert positions[b, t] == t - np.flatnonzero(row == row[t])[0]


def _logit(q, k, t, s):
    """q at position t · k at position s."""
    q, k = (
        rotate(x[None, None, None], *rotation(jnp.array([[position]]), CONFIG, jnp.float32))
        for x, position in ((q, t), (k, s))
    )
    return float(jnp.sum(q * k))


def test_rotary_logits_depend_on_the_difference_of_positions_only():
    q, k = jax.random.normal(jax.random.key(0), (2, CONFIG.head_dim))
    assert _logit(q, k, 9, 5) == pytest.approx(_logit(q, k, 4, 0), rel=1e-5)
    assert abs(_logit(q, k, 9, 5) - _logit(q, k, 9, 6)) > 1e-2  # and they do depend on it
    assert abs(_logit(q, k, 9, 5) - _logit(q, k, 5, 9)) > 1e-2


def test_rotation_turns_each_pair_by_position_times_frequency():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    angle = 3 * 50.0 ** -np.array([0, 0.5])
    pairs = (x[:2] + 1j * x[2:]) * np.exp(1j * angle)
    turned = rotate(jnp.array(x, jnp.float32)[None, None, None], *rotation(jnp.array([[3]]), CONFIG, jnp.float32))
    np.testing.assert_allclose(turned[0, 0, 0], np.concatenate([pairs.real, pairs.imag]), rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_key_head_serves_its_group_of_query_heads(kv_heads):
    keys = jax.random.split(jax.random.key(1), 3)
    q = jax.random.normal(keys[0], (2, 4, 3, 6))
    k, v = (jax.random.normal(key, (2, kv_heads, 5, 6)) for key in keys[1:])
    mask = jnp.tril(jnp.ones((3, 5), bool), 2)[None].repeat(2, 0)
    out = attend(q, k, v, mask)
    for h in range(4):
        kv = h // (4 // kv_heads)
        logits = np.where(mask, np.einsum("btc,bsc->bts", q[:, h], k[:, kv]) / np.sqrt(6), -np.inf)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(out[:, h], np.einsum("bts,bsc->btc", weights, v[:, kv]), rtol=1e-4, atol=1e-6)


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
    x = jnp.ones((1, 1, 2, 4))
    gradient = jax.grad(lambda x: attend(x, x, x, jnp.zeros((1, 2, 2), bool)).sum())(x)
    assert jnp.isfinite(gradient).all()
