import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small import VARIANTS, make

LENGTHS = (6, 3, 1)  # of the prompts, padded on the left to 6


def _prompts():
    segment_ids = jnp.array([[0] * (6 - n) + [1] * n for n in LENGTHS], jnp.int32)
    tokens = jax.random.randint(jax.random.key(2), (3, 12), 2, 11)
    return tokens.at[:, :6].multiply(segment_ids), segment_ids


def _decoded(model, params, tokens, segment_ids, change=lambda cache: cache):
    """Hidden states [B, T − L + 1, D] from prefill and one decode for each further token."""
    length = segment_ids.shape[1]
    hidden, cache = jax.jit(model.prefill, static_argnums=3)(params, tokens[:, :length], segment_ids, tokens.shape[1])
    outputs, cache, decode = [hidden], change(cache), jax.jit(model.decode)
    for t in range(length, tokens.shape[1]):
        hidden, cache = decode(params, tokens[:, t], cache)
        outputs.append(hidden)
    return jnp.stack(outputs, axis=1)


def _full(model, params, tokens, segment_ids):
    ids = jnp.pad(segment_ids, ((0, 0), (0, tokens.shape[1] - segment_ids.shape[1])), constant_values=1)
    return jax.jit(model.hidden)(params, tokens, ids)[:, segment_ids.shape[1] - 1 :]


@pytest.mark.parametrize("name", ["plain", "tied", "qk_norm", "multi-head"])
def test_prefill_and_decode_give_the_full_forward_pass(name):
    model, params = make(VARIANTS[name])
    tokens, segment_ids = _prompts()
    expected = _full(model, params, tokens, segment_ids)
    np.testing.assert_allclose(_decoded(model, params, tokens, segment_ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache._replace(position=cache.position + 1),
        lambda cache: cache._replace(index=cache.index - 1),
        lambda cache: cache._replace(valid=cache.valid.at[:, 0].set(True)),  # one column of padding seen
    ],
    ids=["position", "slot", "mask"],
)
def test_a_cache_that_is_off_by_one_shows(change):
    model, params = make()
    tokens, segment_ids = _prompts()
    wrong = _decoded(model, params, tokens, segment_ids, change)
    assert jnp.abs(wrong - _full(model, params, tokens, segment_ids)).max() > 1e-2


def test_decoding_goes_on_in_the_last_segment_of_a_packed_prompt():
    model, params = make()
    tokens = jax.random.randint(jax.random.key(2), (1, 9), 2, 11)
    packed = _decoded(model, params, tokens, jnp.array([[1, 1, 1, 2, 2]], jnp.int32))
    alone = _decoded(model, params, tokens[:, 3:], jnp.array([[1, 1]], jnp.int32))
    np.testing.assert_allclose(packed, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache_length", [5, 25])
def test_a_cache_that_is_too_short_or_too_long_is_an_error(cache_length):
    model, params = make()
    tokens, segment_ids = _prompts()
    with pytest.raises(
        ValueError, match=rf"cache_length = {cache_length}: expected the 6 tokens .* max_length = 24 at"
    ):
        model.prefill(params, tokens[:, :6], segment_ids, cache_length)


def test_a_token_of_another_shape_or_dtype_is_an_error():
    model, params = make()
    tokens, segment_ids = _prompts()
    _, cache = model.prefill(params, tokens[:, :6], segment_ids, 12)
    with pytest.raises(ValueError, match=r"token has shape \(3, 1\): expected \(3,\)"):
        model.decode(params, tokens[:, :1], cache)
    with pytest.raises(TypeError, match="token has dtype float32"):
        model.decode(params, jnp.zeros(3), cache)
