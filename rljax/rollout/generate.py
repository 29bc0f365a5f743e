"""Generation of completions: prefill of the prompts, then one token per row until every row has stopped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, core, lax
from jaxtyping import Bool, Float, Int

from rljax._checks import check
from rljax.models import Model
from rljax.models.attention import accumulator, softcapped
from rljax.models.sharding import ShardingRules, split_rows
from rljax.rollout.sampling import SamplingConfig, choose, row_keys


class Samples(NamedTuple):
    """B rows of T = L + N columns: a prompt of L columns and a completion of at most N tokens each."""

    tokens: Int[Array, "B T"]
    """Columns [left padding | prompt | completion | right padding]."""
    segment_ids: Int[Array, "B T"]
    """0 on padding; a completion has the last id of its prompt."""
    mask: Bool[Array, "B T"]
    """True on the tokens of the completion, including its stop token."""
    old_logp: Float[Array, "B T"]
    """log π in nats at the sampling temperature, over all tokens that are not banned, without top-k and top-p
    truncation: the log-probability that training computes too. 0 outside the mask."""
    sampled_logp: Float[Array, "B T"]
    """Log-probability in nats under the truncated distribution, which was sampled; 0 outside the mask."""
    finished: Bool[Array, " B"]
    """True if the completion ended with a stop token within its budget."""


class _Progress(NamedTuple):
    n: Array
    """Number of tokens drawn so far, [] int32."""
    last: Array
    """Last token drawn, [B] int32."""
    active: Array
    """True if the row continues after `last`, [B] bool."""
    finished: Array
    cache: Any
    drawn: tuple[Array, ...]
    """(tokens, mask, old_logp, sampled_logp), each [B, N]."""


def generate(
    model: Model,
    params: Any,
    prompts: Int[Array, "P L"],
    segment_ids: Int[Array, "P L"],
    key: Array,
    config: SamplingConfig,
    *,
    stop_ids: tuple[int, ...],
    completions: int = 1,
    banned: tuple[int, ...] = (),
    budget: Int[Array, " B"] | None = None,
    rows: Int[Array, " B"] | None = None,
) -> Samples:
    """Samples G completions y per left-padded prompt x, in B = P·G rows; completion g of prompt p is row p·G + g.

        y ~ Π_t π(y_t | x, y_<t)

    The G completions share one forward pass over their prompt. At temperature 0 a completion is greedy, `old_logp` is
    computed at temperature 1 and `sampled_logp` is 0. The random numbers of a token depend only on `key`, its row's
    number and its index in the completion, not on padding or other rows. Under `jax.jit`, mark `model`, `config`,
    `stop_ids`, `completions` and `banned` as static.

    Args:
      model: The functions of the model.
      params: Parameters of `model`.
      prompts: Token ids, [P, L], padded on the left.
      segment_ids: 0 on padding, the segment's id elsewhere, [P, L].
      key: Random key of the rollout.
      config: Temperature, truncation and `max_new_tokens` (N).
      stop_ids: Tokens that end a completion.
      completions: Completions per prompt (G).
      banned: Tokens with probability 0; π is the softmax over all other tokens.
      budget: Maximum length of each completion, in tokens, [B], integers; default and upper limit: N.
      rows: Number of each row, [B], integers, which selects its random numbers; default: index in the batch.

    Returns:
      `Samples` with P·G rows of T = L + N tokens.

    Raises:
      ValueError: If shapes do not fit, L + N exceeds the model's `max_length`, `completions` is less than 1, an id is
        out of range, a stop token or every token is banned, or a prompt is not left-padded (`check_left_padded`; not
        checked under `jax.jit`).
      TypeError: If `prompts` or `segment_ids` are not integers.
    """
    B, N = _check(model, prompts, segment_ids, config, completions, stop_ids, banned, budget, rows)
    unembedding, softcap = model.unembedding(params), model.head(params).softcap
    keys = row_keys(key, jnp.arange(B, dtype=jnp.int32) if rows is None else rows)
    budget = jnp.full(B, N, jnp.int32) if budget is None else jnp.minimum(budget, N)

    def advance(hidden, cache, state: _Progress) -> _Progress:
        logits = without(split_rows(next_logits(hidden, unembedding, softcap), model.rules), banned)
        token, *logps = choose(logits, keys_at(keys, state.n), config)
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

    prefilled = model.prefill(params, prompts, segment_ids, prompts.shape[1] + N)
    prompts, segment_ids, (hidden, cache) = jax.tree.map(
        lambda x: _repeated(x, completions, model.rules), (prompts, segment_ids, prefilled)
    )
    dtype = accumulator(hidden.dtype)
    blank = tuple(split_rows(jnp.zeros((B, N), d), model.rules) for d in (jnp.int32, bool, dtype, dtype))
    start = _Progress(jnp.int32(0), jnp.zeros(B, jnp.int32), budget > 0, jnp.zeros(B, bool), cache, blank)
    end = lax.while_loop(lambda state: jnp.any(state.active), more, advance(hidden, cache, start))
    return _samples(prompts, segment_ids, end)


def _repeated(x: Array, times: int, rules: ShardingRules) -> Array:
    """Each row of x `times` times, sharded like rows; x itself if it is a scalar, as the index of a cache."""
    return x if times == 1 or jnp.ndim(x) == 0 else split_rows(jnp.repeat(x, times, axis=0), rules)


def keys_at(keys: Array, n: Int[Array, ""]) -> Array:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, n)


def next_logits(
    hidden: Float[Array, "B D"], unembedding: Float[Array, "V D"], softcap: float | None
) -> Float[Array, "B V"]:
    """h · Wᵀ, accumulated in at least float32 and soft-capped, as in training."""
    z = jnp.einsum("bd,vd->bv", hidden, unembedding, preferred_element_type=accumulator(hidden.dtype))
    return softcapped(z, softcap)


def without(logits: Float[Array, "B V"], banned: tuple[int, ...]) -> Float[Array, "B V"]:
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
    """Raises ValueError unless every row of `segment_ids` [B, L] is padding (id 0) followed by its prompt.

    >>> check_left_padded(np.array([[0, 1, 1], [1, 1, 0]]))
    Traceback (most recent call last):
    ValueError: segment_ids[1] = [1, 1, 0]: expected padding (0) only on the left, then the prompt to the last column
    """
    present = np.asarray(segment_ids) != 0
    wrong = np.flatnonzero(~present[:, -1:].any(axis=1) | (present[:, :-1] & ~present[:, 1:]).any(axis=1))
    if wrong.size:
        row = np.asarray(segment_ids)[wrong[0]].tolist()
        raise ValueError(f"segment_ids[{wrong[0]}] = {row}: expected padding (0) only on the left, then the prompt to "
                         "the last column")  # fmt: skip


def _check(model: Model, prompts, segment_ids, config, completions, stop_ids, banned, budget, rows) -> tuple[int, int]:
    """(B, N); raises ValueError or TypeError if an argument of `generate` does not fit."""
    if prompts.ndim != 2:
        raise ValueError(f"prompts has shape {prompts.shape}: expected [P, L]")
    if segment_ids.shape != prompts.shape:
        raise ValueError(f"segment_ids has shape {segment_ids.shape}: expected {prompts.shape}, the shape of prompts")
    if not isinstance(segment_ids, core.Tracer) and getattr(segment_ids, "is_fully_addressable", True):
        check_left_padded(segment_ids)
    check(completions >= 1, "completions", completions, "1 or more completions per prompt")
    (P, L), N, limit = prompts.shape, config.max_new_tokens, model.max_length
    B, length = P * completions, L + N
    if length > limit:
        raise ValueError(f"prompts of {L} columns and max_new_tokens = {N} make rows of {length} tokens: expected at "
                         f"most max_length = {limit} of the model")  # fmt: skip
    for name, x in (("budget", budget), ("rows", rows)):
        if x is not None and (x.shape != (B,) or not jnp.issubdtype(x.dtype, jnp.integer)):
            raise ValueError(f"{name} has shape {x.shape} and dtype {x.dtype}: expected ({B},) and an integer dtype")
    for name, ids in (("stop_ids", stop_ids), ("banned", banned)):
        if any(not 0 <= token < model.vocab_size for token in ids):
            raise ValueError(f"{name} = {ids}: expected ids in [0, vocab_size = {model.vocab_size})")
    if set(banned) & set(stop_ids) or len(set(banned)) == model.vocab_size:
        raise ValueError(f"banned = {banned}: expected ids that are not in stop_ids = {stop_ids}, and not all tokens")
    return B, N
