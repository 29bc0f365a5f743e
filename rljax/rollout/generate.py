"""Prompts in, completions out: prefill, then one token a row until every row has stopped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, core, lax
from jaxtyping import Bool, Float, Int

from rljax.models import Model
from rljax.models.attention import accumulator
from rljax.models.sharding import split_rows
from rljax.rollout.sampling import SamplingConfig, choose, row_keys


class Samples(NamedTuple):
    """Prompts of L columns with their completions of at most N: rows of T = L + N tokens."""

    tokens: Int[Array, "B T"]
    """[left pad | prompt | completion | right pad]."""
    segment_ids: Int[Array, "B T"]
    """The prompt's last id on the completion too; 0 on padding."""
    mask: Bool[Array, "B T"]
    """True exactly on the completion, its stop token included."""
    old_logp: Float[Array, "B T"]
    """log π of the tempered, untruncated policy over the tokens that are not banned: what training recomputes. 0 off
    the mask."""
    sampled_logp: Float[Array, "B T"]
    """Log-probability in the truncated distribution drawn from; equal to old_logp without truncation."""
    finished: Bool[Array, " B"]
    """The completion ended with a stop token, within its budget."""


class _Progress(NamedTuple):
    n: Array
    """Tokens drawn so far, [] int32."""
    last: Array
    """The token drawn last, [B] int32."""
    active: Array
    """The row goes on after it, [B] bool."""
    finished: Array
    cache: Any
    drawn: tuple[Array, ...]
    """tokens, mask, old_logp, sampled_logp: each [B, N]."""


def generate(
    model: Model,
    params: Any,
    prompts: Int[Array, "B L"],
    segment_ids: Int[Array, "B L"],
    key: Array,
    config: SamplingConfig,
    *,
    stop_ids: tuple[int, ...],
    banned: tuple[int, ...] = (),
    budget: Int[Array, " B"] | None = None,
    rows: Int[Array, " B"] | None = None,
) -> Samples:
    """A completion y of each left-padded prompt x, drawn from Π_t π(y_t | x, y_<t) at the given temperature.

    A row ends after a token of `stop_ids`, or after `budget` tokens (at most, and by default, `max_new_tokens`); the
    loop ends when every row has. A row's draws come from `key`, its number in `rows` (by default its place in the
    batch) and the number of the token: neither padding nor the other rows change them. At temperature 0 the completion
    is greedy, old_logp is that of temperature 1, and sampled_logp is 0. The `banned` tokens have probability 0: π is
    the softmax over the others.

    Under `jax.jit`, `model`, `config`, `stop_ids` and `banned` are static. Raises ValueError or TypeError if shapes or
    dtypes do not fit, L + max_new_tokens exceeds the model's max_length, ids are out of range, or a row of concrete
    `segment_ids` does not end with its prompt (traced ones are not looked at: `check_left_padded`).
    """
    B, N = _check(model, prompts, segment_ids, config, stop_ids, banned, budget, rows)
    unembedding = model.unembedding(params)
    keys = row_keys(key, jnp.arange(B, dtype=jnp.int32) if rows is None else rows)
    budget = jnp.full(B, N, jnp.int32) if budget is None else jnp.minimum(budget, N)

    def advance(hidden, cache, state: _Progress) -> _Progress:
        logits = _without(split_rows(_logits(hidden, unembedding), model.rules), banned)
        token, *logps = choose(logits, _keys_at(keys, state.n), config)
        token = jnp.where(state.active, token, 0)
        stopped = state.active & jnp.isin(token, jnp.array(stop_ids, jnp.int32))
        column = (token, state.active, *(jnp.where(state.active, logp, 0) for logp in logps))
        drawn = tuple(
            lax.dynamic_update_slice_in_dim(old, new[:, None].astype(old.dtype), state.n, axis=1)
            for old, new in zip(state.drawn, column, strict=True)
        )
        active = state.active & ~stopped & (state.n + 1 < budget)
        return _Progress(state.n + 1, token, active, state.finished | stopped, cache, drawn)

    def more(state: _Progress):
        hidden, cache = model.decode(params, state.last, state.cache)
        return advance(hidden, cache, state)

    hidden, cache = model.prefill(params, prompts, segment_ids, prompts.shape[1] + N)
    dtype = accumulator(hidden.dtype)
    blank = tuple(split_rows(jnp.zeros((B, N), d), model.rules) for d in (jnp.int32, bool, dtype, dtype))
    start = _Progress(jnp.int32(0), jnp.zeros(B, jnp.int32), budget > 0, jnp.zeros(B, bool), cache, blank)
    end = lax.while_loop(lambda state: jnp.any(state.active), more, advance(hidden, cache, start))
    return _samples(prompts, segment_ids, end)


def _keys_at(keys: Array, n: Int[Array, ""]) -> Array:
    """The key of token n of each row."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)


def _logits(hidden: Float[Array, "B D"], unembedding: Float[Array, "V D"]) -> Float[Array, "B V"]:
    """h · Wᵀ, accumulated in at least float32, as training does."""
    return jnp.einsum("bd,vd->bv", hidden, unembedding, preferred_element_type=accumulator(hidden.dtype))


def _without(logits: Float[Array, "B V"], banned: tuple[int, ...]) -> Float[Array, "B V"]:
    """−∞ at the banned tokens."""
    return jnp.where(np.isin(np.arange(logits.shape[-1]), banned)[None], -jnp.inf, logits) if banned else logits


def _samples(prompts: Array, segment_ids: Array, end: _Progress) -> Samples:
    tokens, mask, old_logp, sampled_logp = end.drawn
    completed = jnp.where(mask, segment_ids[:, -1:], 0)

    def after(prompt: Array, completion: Array) -> Array:
        return jnp.concatenate([prompt.astype(completion.dtype), completion], axis=1)

    zero = jnp.zeros_like(prompts)
    return Samples(
        tokens=after(prompts, tokens),
        segment_ids=after(segment_ids, completed).astype(jnp.int32),
        mask=after(zero, mask),
        old_logp=after(zero, old_logp),
        sampled_logp=after(zero, sampled_logp),
        finished=end.finished,
    )


def check_left_padded(segment_ids) -> None:
    """Raises ValueError, naming the row, unless every row is padding (id 0) and then its prompt, to the last column.

    >>> check_left_padded(np.array([[0, 1, 1], [1, 1, 0]]))
    Traceback (most recent call last):
    ValueError: segment_ids[1] = [1, 1, 0]: expected padding (0) on the left alone, then the prompt to the last column
    """
    present = np.asarray(segment_ids) != 0
    wrong = np.flatnonzero(~present[:, -1:].any(axis=1) | (present[:, :-1] & ~present[:, 1:]).any(axis=1))
    if wrong.size:
        row = np.asarray(segment_ids)[wrong[0]].tolist()
        raise ValueError(f"segment_ids[{wrong[0]}] = {row}: expected padding (0) on the left alone, then the prompt to "
                         "the last column")  # fmt: skip


def _check(model: Model, prompts, segment_ids, config, stop_ids, banned, budget, rows) -> tuple[int, int]:
    """(B, N), or a plain error."""
    if prompts.ndim != 2:
        raise ValueError(f"prompts has shape {prompts.shape}: expected [B, L]")
    if segment_ids.shape != prompts.shape:
        raise ValueError(f"segment_ids has shape {segment_ids.shape}: expected {prompts.shape}, as prompts")
    if not isinstance(segment_ids, core.Tracer) and getattr(segment_ids, "is_fully_addressable", True):
        check_left_padded(segment_ids)
    (B, L), N, limit = prompts.shape, config.max_new_tokens, model.max_length
    length = L + N
    if length > limit:
        raise ValueError(f"prompts of {L} columns and max_new_tokens = {N} make rows of {length} tokens: expected at "
                         f"most the model's max_length = {limit}")  # fmt: skip
    for name, x in (("budget", budget), ("rows", rows)):
        if x is not None and (x.shape != (B,) or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} has shape {x.shape} and dtype {x.dtype}: expected ({B},) int32")
    for name, ids in (("stop_ids", stop_ids), ("banned", banned)):
        if any(not 0 <= token < model.vocab_size for token in ids):
            raise ValueError(f"{name} = {ids}: expected ids in [0, vocab_size = {model.vocab_size})")
    if set(banned) & set(stop_ids) or len(set(banned)) == model.vocab_size:
        raise ValueError(f"banned = {banned}: expected ids other than stop_ids = {stop_ids}, and not all tokens")
    return B, N
