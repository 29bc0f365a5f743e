"""Sampling of one token per row from logits: temperature, truncation and the random draw."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, UInt32

from rljax._checks import check


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Sampling settings. Raises ValueError if a field is out of range."""

    max_new_tokens: int = 20
    """Maximum length of a completion in tokens, including its stop token."""
    temperature: float = 1.0
    """Divisor of the logits; 0 selects the most likely token (greedy)."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 disables the truncation."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability (nucleus, 1904.09751); 1 disables it."""

    def __post_init__(self):
        check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or a positive number")
        check(self.top_k >= 0, "top_k", self.top_k, "0 (disabled) or a number of tokens")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "a probability in (0, 1] (1 disables it)")


def row_keys(key: Array, rows: Int[Array, " B"]) -> Array:
    """Random keys [B], one per row number in `rows` [B]; a row's key depends only on `key` and the row's number."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The logits with −∞ outside the k largest of each row; ties keep the lower id."""
    if k >= logits.shape[-1]:
        return logits
    _, ids = lax.top_k(logits, k)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), ids, True, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """The logits with −∞ outside the smallest set of each row's most likely tokens whose probability is at least p.

    The token whose probability crosses p is kept, so at least one token is kept.
    """
    ids = jnp.argsort(logits, axis=-1, descending=True)
    pi = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), ids, axis=-1)
    before = jnp.cumsum(pi, axis=-1) - pi
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), ids, before < p, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


BLOCK = 512
"""Tokens per block of the vocabulary in `draw`."""


def draw(log_pi: Float[Array, "B V"], bits: UInt32[Array, "B 2"]) -> Int[Array, " B"]:
    """Draws a token per row from π in two levels: first a block of the vocabulary, then a token of the block.

        P(token) = P(block) · P(token | block),   each a multiple of 2⁻³¹ (`_weights`)

    `bits` are 64 random bits per row, 32 per level. A token of probability 0 is never drawn. A single float32 random
    number, a multiple of 2⁻²³, would be too coarse for 150,000 tokens that share 1 % of the mass.
    """
    B, V = log_pi.shape
    size = min(BLOCK, V)
    pi = jnp.pad(jnp.exp(log_pi), ((0, 0), (0, -V % size))).reshape(B, -1, size)
    block = _pick(jnp.sum(pi, axis=-1), bits[:, 0])
    inside = jnp.take_along_axis(pi, block[:, None, None], axis=1)[:, 0]
    return block * size + _pick(inside, bits[:, 1])


def _pick(masses: Float[Array, "B n"], bits: UInt32[Array, " B"]) -> Int[Array, " B"]:
    """The first index whose cumulative weight exceeds bits >> 1: i with probability `_weights(masses)`[i] / 2³¹."""
    reached = jnp.cumsum(_weights(masses), axis=-1)
    return jnp.argmax(reached > (bits >> 1)[:, None], axis=-1).astype(jnp.int32)


def _weights(masses: Float[Array, "B n"]) -> UInt32[Array, "B n"]:
    """2³¹ · masses / Σ masses as integers that add up to 2³¹, so that cumulative sums are exact.

    The largest weight absorbs the rounding errors. A mass below 2⁻³² of the sum has weight 0.
    """
    whole = jnp.uint32(2**31)
    shares = masses / jnp.sum(masses, axis=-1, keepdims=True)
    weights = jnp.round(shares * 2.0**31).astype(jnp.uint32)
    largest = jnp.arange(masses.shape[-1])[None] == jnp.argmax(masses, axis=-1, keepdims=True)
    missing = whole - jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.uint32)  # modulo 2³², like the sum below
    return weights + jnp.where(largest, missing, jnp.uint32(0))


def choose(
    logits: Float[Array, "B V"], keys: Array, config: SamplingConfig
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """One token per row, its log π at the temperature, and its log-probability after truncation.

    At temperature 0: the token with the largest logit, its log π at temperature 1, and 0.
    """
    greedy = config.temperature == 0
    log_pi = jax.nn.log_softmax(logits if greedy else logits / config.temperature, axis=-1)
    if greedy:
        token = jnp.argmax(log_pi, axis=-1).astype(jnp.int32)
        logp = _at(log_pi, token)
        return token, logp, jnp.zeros_like(logp)
    kept = top_k(log_pi, config.top_k) if config.top_k else log_pi
    kept = top_p(kept, config.top_p) if config.top_p < 1 else kept
    truncated = log_pi if kept is log_pi else jax.nn.log_softmax(kept, axis=-1)
    token = draw(truncated, jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys))
    return token, _at(log_pi, token), _at(truncated, token)


def _at(values: Array, token: Array) -> Array:
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
