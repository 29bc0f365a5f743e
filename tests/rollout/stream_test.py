import jax
import numpy as np
import pytest

from rljax.rollout import SamplingConfig, generate, stream, streaming
from tests.models.small import CONFIG, VARIANTS, make, some_tokens

GREEDY = SamplingConfig(max_new_tokens=9, temperature=0.0)
SAMPLED = SamplingConfig(max_new_tokens=9, top_k=7)
KEY = jax.random.key(3)


def generated(model, params, prompt, config, stop_ids=(0,), banned=()) -> list[int]:
    tokens = np.int32([prompt])
    samples = generate(model, params, tokens, np.ones_like(tokens), KEY, config, stop_ids=stop_ids, banned=banned)
    return np.asarray(samples.tokens)[np.asarray(samples.mask)].tolist()


@pytest.fixture
def short_buckets(monkeypatch):
    monkeypatch.setattr(streaming, "SHORTEST", 4)


@pytest.mark.parametrize(("variant", "config"), [("gemma", GREEDY), ("plain", SAMPLED)])
def test_the_tokens_are_those_of_generate(variant, config, short_buckets):
    model, params = make(VARIANTS[variant])
    prompt = some_tokens(5).tolist()
    whole = generated(model, params, prompt, config)
    assert len(whole) > 3
    assert list(stream(model, params, prompt, KEY, config, stop_ids=(0,))) == whole
    third = whole[2]  # as a stop token, it ends the completion where it first occurs
    stopped = list(stream(model, params, prompt, KEY, config, stop_ids=(third,)))
    assert stopped == whole[: whole.index(third) + 1]


def test_banned_tokens_are_not_drawn(short_buckets):
    model, params = make()
    banned = tuple(generated(model, params, [2, 3], GREEDY)[:1])
    stop_ids = tuple({0, 1} - set(banned))
    expected = generated(model, params, [2, 3], GREEDY, stop_ids, banned)
    assert list(stream(model, params, [2, 3], KEY, GREEDY, stop_ids=stop_ids, banned=banned)) == expected
    assert not set(expected) & set(banned)


def test_a_completion_ends_where_the_model_ends():
    model, params = make()
    prompt = some_tokens(CONFIG.max_length - 3).tolist()
    expected = generated(model, params, prompt, SamplingConfig(max_new_tokens=3, temperature=0.0), stop_ids=())
    assert list(stream(model, params, prompt, KEY, GREEDY, stop_ids=())) == expected
    assert len(expected) == 3


@pytest.mark.parametrize("length", [0, CONFIG.max_length])
def test_a_prompt_without_room_is_refused(length):
    model, params = make()
    with pytest.raises(ValueError, match=f"prompt has {length} tokens: expected 1 … 23"):
        next(stream(model, params, [2] * length, KEY, GREEDY, stop_ids=()))


def test_buckets_double():
    assert [streaming.bucket(n, 1000) for n in (1, 64, 65, 128, 129, 256, 257, 513)] == [
        64, 64, 128, 128, 256, 256, 512, 1000]  # fmt: skip
    assert streaming.bucket(600, 610) == 610
