import jax
import numpy as np
import pytest

from rljax.models import Decoder
from tests.models.small import VARIANTS, hidden_of, make, some_tokens

LENGTHS = (6, 3, 1)  # lengths of the prompts, padded on the left to 6

prefill = jax.jit(Decoder.prefill, static_argnums=(0, 4))
decode = jax.jit(Decoder.decode, static_argnums=0)


def _prompts():
    segment_ids = np.int32([[0] * (6 - n) + [1] * n for n in LENGTHS])
    tokens = some_tokens((3, 12))
    tokens[:, :6] *= segment_ids
    return tokens, segment_ids


def _decoded(model, params, tokens, segment_ids, change=lambda cache: cache):
    """Hidden states [B, T − L + 1, D] from prefill and one decode per further token."""
    length = segment_ids.shape[1]
    hidden, cache = prefill(model, params, tokens[:, :length], segment_ids, tokens.shape[1])
    outputs, cache = [hidden], change(jax.tree.map(np.asarray, cache))
    for t in range(length, tokens.shape[1]):
        hidden, cache = decode(model, params, tokens[:, t], cache)
        outputs.append(hidden)
    return np.stack(outputs, axis=1)


def _full(model, params, tokens, segment_ids):
    ids = np.pad(segment_ids, ((0, 0), (0, tokens.shape[1] - segment_ids.shape[1])), constant_values=1)
    return np.asarray(hidden_of(model, params, tokens, ids))[:, segment_ids.shape[1] - 1 :]


@pytest.mark.parametrize("name", ["plain", "tied", "qk_norm", "multi-head", "llama3 and biases", "gemma", "experts"])
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
        lambda cache: cache._replace(valid=cache.valid | (np.arange(12) == 0)),
    ],
    ids=["position", "slot", "mask"],
)
def test_a_cache_that_is_off_by_one_shows(change):
    model, params = make()
    tokens, segment_ids = _prompts()
    wrong = _decoded(model, params, tokens, segment_ids, change)
    assert np.abs(wrong - _full(model, params, tokens, segment_ids)).max() > 1e-2


@pytest.mark.parametrize("name", ["plain", "gemma"])
def test_decoding_goes_on_in_the_last_segment_of_a_packed_prompt(name):
    model, params = make(VARIANTS[name])
    tokens = some_tokens((1, 12)).repeat(3, axis=0)
    segment_ids = np.int32([[1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]])
    packed, alone, whole = _decoded(model, params, tokens, segment_ids)
    np.testing.assert_allclose(packed, alone, rtol=1e-4, atol=1e-5)
    assert np.abs(packed - whole).max() > 1e-2  # the other segment would change the result
    ids = np.pad(segment_ids, ((0, 0), (0, 6)), mode="edge")
    full = np.asarray(hidden_of(model, params, tokens, ids))[:, 5:]
    np.testing.assert_allclose([packed, alone, whole], full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cache_length", [5, 25])
def test_a_cache_that_is_too_short_or_too_long_is_an_error(cache_length):
    model, params = make()
    tokens, segment_ids = _prompts()
    with pytest.raises(
        ValueError, match=rf"cache_length = {cache_length}: expected at least the 6 tokens .* at most max_length = 24"
    ):
        model.prefill(params, tokens[:, :6], segment_ids, cache_length)


def test_a_token_of_another_shape_or_dtype_is_an_error():
    model, params = make()
    tokens, segment_ids = _prompts()
    _, cache = jax.eval_shape(lambda: model.prefill(params, tokens[:, :6], segment_ids, 12))
    with pytest.raises(ValueError, match=r"token has shape \(3, 1\): expected \(3,\)"):
        model.decode(params, tokens[:, :1], cache)
    with pytest.raises(TypeError, match="token has dtype float32"):
        model.decode(params, np.zeros(3, np.float32), cache)
