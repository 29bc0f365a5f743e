import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models import attention
from rljax.models.attention import attend, causal_mask, positions_of
from rljax.models.rope import frequencies, rotate, rotation
from tests.models.small import CONFIG, packed_rows

THETA = frequencies(CONFIG.rope_base, CONFIG.head_dim)


def test_positions_and_mask_are_those_of_each_segment():
    _, segment_ids = packed_rows()
    run = jax.jit(lambda segment_ids: (positions_of(segment_ids), causal_mask(segment_ids)))
    positions, mask = map(np.asarray, run(segment_ids))
    for b, row in enumerate(segment_ids):
        for t in range(row.size):
            for s in range(row.size):
                assert mask[b, t, s] == (s <= t and row[s] == row[t] != 0)
            if row[t]:
                assert positions[b, t] == t - np.flatnonzero(row == row[t])[0]


@jax.jit
def _logit(q, k, t, s):
    q, k = (
        rotate(x[None, None, None], *rotation(position[None, None], THETA, CONFIG.max_length, jnp.float32))
        for x, position in ((q, t), (k, s))
    )
    return jnp.sum(q * k)


def test_rotary_logits_depend_on_the_difference_of_positions_only():
    q, k = np.float32(np.random.default_rng(0).normal(size=(2, CONFIG.head_dim)))
    of, same, nearer, back = (float(_logit(q, k, *at)) for at in ((9, 5), (4, 0), (9, 6), (5, 9)))
    assert of == pytest.approx(same, rel=1e-5)
    assert abs(of - nearer) > 1e-2
    assert abs(of - back) > 1e-2


def test_rotation_turns_each_pair_by_position_times_frequency():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    angle = 3 * 50.0 ** -np.array([0, 0.5])
    pairs = (x[:2] + 1j * x[2:]) * np.exp(1j * angle)
    run = jax.jit(lambda x, positions: rotate(x, *rotation(positions, THETA, CONFIG.max_length, jnp.float32)))
    turned = run(np.float32(x)[None, None, None], np.array([[3]]))
    np.testing.assert_allclose(turned[0, 0, 0], np.concatenate([pairs.real, pairs.imag]), rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_each_key_head_serves_its_group_of_query_heads(kv_heads):
    rng = np.random.default_rng(1)
    q, k, v = (np.float32(rng.normal(size=(2, *shape, 6))) for shape in ((4, 3), (kv_heads, 5), (kv_heads, 5)))
    mask = np.tril(np.ones((3, 5), bool), 2)[None].repeat(2, 0)
    out = np.asarray(jax.jit(attend)(q, k, v, mask))
    for h in range(4):
        kv = h // (4 // kv_heads)
        logits = np.where(mask, np.einsum("btc,bsc->bts", q[:, h], k[:, kv]) / np.sqrt(6), -np.inf)
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(out[:, h], np.einsum("bts,bsc->btc", weights, v[:, kv]), rtol=1e-4, atol=1e-6)


@functools.cache
def _in_blocks(queries, dtype):
    rng = np.random.default_rng(2)
    shapes = [(2, heads, tokens, 8) for heads, tokens in ((4, 43), (2, 50), (2, 50), (4, 43))]
    q, k, v, weight = (rng.normal(size=shape).astype(np.float32).astype(dtype) for shape in shapes)
    mask = np.tril(np.ones((43, 50), bool), 7)[None].repeat(2, 0)

    def run(q, k, v, weight):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, mask, 0.5, 2.0), q, k, v)
        return out, *back(weight)

    with mock.patch.object(attention, "QUERIES", queries):
        return [np.asarray(x, np.float32) for x in jax.jit(run)(q, k, v, weight)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_of_queries_are_the_whole(dtype):
    exact = _in_blocks(64, jnp.float32)
    for queries in (1, 4):  # 43 blocks; 11 blocks with one padded query
        for x, whole, y in zip(_in_blocks(queries, dtype), _in_blocks(64, dtype), exact, strict=True):
            assert np.linalg.norm(x - y) <= 1.2 * np.linalg.norm(whole - y) + 1e-6 * np.linalg.norm(y)


def test_the_weights_of_long_rows_never_exist_at_once():
    q = jax.ShapeDtypeStruct((1, 2, 2048, 8), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, 2048, 2048), bool)
    step = jax.jit(jax.grad(lambda q, mask: attend(q, q, q, mask).sum()))
    temporaries = step.lower(q, mask).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < 2 * 2048 * 2048 * 4  # one [B, H, T, T] array; unblocked attention needs three


def test_a_query_that_sees_nothing_is_finite_and_so_is_its_gradient():
    run = jax.jit(jax.grad(lambda x, mask: attend(x, x, x, mask).sum()))
    assert np.isfinite(run(np.ones((1, 1, 2, 4), np.float32), np.zeros((1, 2, 2), bool))).all()
