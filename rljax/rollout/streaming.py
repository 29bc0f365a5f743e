"""Sampling of one completion whose tokens are yielded as they are drawn."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rljax.models import Model
from rljax.rollout.generate import keys_at, next_logits, without
from rljax.rollout.sampling import SamplingConfig, choose, row_keys

SHORTEST = 64
"""Columns of the shortest prompt bucket; each further bucket is twice as long, and each is compiled once."""


def stream(
    model: Model,
    params: Any,
    prompt: Sequence[int],
    key: Array,
    config: SamplingConfig,
    *,
    stop_ids: tuple[int, ...],
    banned: tuple[int, ...] = (),
) -> Iterator[int]:
    """Yields the tokens of one completion of `prompt`: those of `generate` for one row, with the same random numbers.

    The completion ends with a stop token, after `max_new_tokens`, or when the row has the model's `max_length` tokens.

    Args:
      model: The functions of the model.
      params: Parameters of `model`.
      prompt: Token ids.
      key: Random key of the completion.
      config: Temperature, truncation and `max_new_tokens`.
      stop_ids: Tokens that end the completion.
      banned: Tokens with probability 0.

    Raises:
      ValueError: If the prompt is empty, or leaves no room for a token.
    """
    length, limit = len(prompt), model.max_length
    if not 1 <= length < limit:
        raise ValueError(f"prompt has {length} tokens: expected 1 … {limit - 1}, since the model reads at most {limit}")
    steps = min(config.max_new_tokens, limit - length)
    columns = bucket(length, limit - steps)
    tokens, segment_ids = np.zeros((2, 1, columns), np.int32)
    tokens[0, columns - length :], segment_ids[0, columns - length :] = prompt, 1
    keys = row_keys(key, jnp.arange(1, dtype=jnp.int32))
    cache_length = min(columns + config.max_new_tokens, limit)
    hidden, cache = _prefill(model, params, tokens, segment_ids, cache_length)
    for n in range(steps):
        token = _draw(model, params, hidden, keys, np.int32(n), config, banned)
        yield (drawn := int(token[0]))
        if drawn in stop_ids:
            return
        if n + 1 < steps:
            hidden, cache = _decode(model, params, token, cache)


def bucket(length: int, limit: int) -> int:
    """The number of columns for a prompt of `length` tokens: `SHORTEST` times a power of 2, but at most `limit`."""
    return min(limit, SHORTEST << max(0, (length - 1) // SHORTEST).bit_length())


@functools.partial(jax.jit, static_argnames=("model", "cache_length"))
def _prefill(model: Model, params: Any, tokens: Array, segment_ids: Array, cache_length: int):
    return model.prefill(params, tokens, segment_ids, cache_length)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _decode(model: Model, params: Any, token: Int[Array, "1"], cache: Any):
    return model.decode(params, token, cache)


@functools.partial(jax.jit, static_argnames=("model", "config", "banned"))
def _draw(
    model: Model, params: Any, hidden: Float[Array, "1 D"], keys: Array, n: Array, config: SamplingConfig,
    banned: tuple[int, ...],
) -> Int[Array, "1"]:  # fmt: skip
    logits = next_logits(hidden, model.unembedding(params), model.head(params).softcap)
    token, *_ = choose(without(logits, banned), keys_at(keys, n), config)
    return token
