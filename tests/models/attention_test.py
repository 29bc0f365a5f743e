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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_of_queries_are_the_whole(dtype, monkeypatch):
    keys = jax.random.split(jax.random.key(2), 4)
    q, weight = (jax.random.normal(key, (2, 4, 43, 8)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 2, 50, 8)) for key in keys[2:])
    mask = jnp.tril(jnp.ones((43, 50), bool), 7)[None].repeat(2, 0)

    def all_of(queries, dtype):
        monkeypatch.setattr("rljax.models.attention.QUERIES", queries)
        q_, k_, v_ = (x.astype(dtype) for x in (q, k, v))
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q_, k_, v_)
        return [np.asarray(x, np.float32) for x in (out, *back(weight.astype(dtype)))]

    exact = all_of(64, jnp.float32)
    for queries in (1, 4):  # 43 blocks; 11, and one padded query
        for x, whole, y in zip(all_of(queries, dtype), all_of(64, dtype), exact, strict=True):
            assert np.linalg.norm(x - y) <= 1.2 * np.linalg.norm(whole - y) + 1e-6 * np.linalg.norm(y)


def test_the_weights_of_long_rows_never_exist_at_once():
    q = jax.ShapeDtypeStruct((1, 2, 2048, 8), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 2048, 2048), bool)
    step = jax.jit(jax.grad(lambda q, mask: attend(q, q, q, mask).sum()))
    temporaries = step.lower(q, mask).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 2 * 2048 * 2048 * 4  # one [B, H, T, T]; unblocked: three


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
    x = jnp.ones((1, 1, 2, 4))
    gradient = jax.grad(lambda x: attend(x, x, x, jnp.zeros((1, 2, 2), bool)).sum())(x)
    assert jnp.isfinite(gradient).all()
