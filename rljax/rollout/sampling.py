"""One token a row from given logits: tempering, truncation, and the draw."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int, UInt32

from rljax._checks import check


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn. Raises ValueError, naming the field, its value and what would be right."""

    max_new_tokens: int = 20
    """Budget of a completion, its stop token included."""
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Draw among the k likeliest tokens; 0 is off."""
    top_p: float = 1.0
    """Draw among the fewest tokens that hold this much probability (nucleus, 1904.09751); 1 is off."""

    def __post_init__(self):
        check(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "1 or more")
        check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or a positive number")
        check(self.top_k >= 0, "top_k", self.top_k, "0 (off) or a number of tokens")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "a probability in (0, 1]; 1 is off")


def row_keys(key: Array, rows: Int[Array, " B"]) -> Array:
    """A key for each row, which depends on the row's number and on nothing else of the batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)


def top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """−∞ outside the k largest logits of a row; among equals the lower id stays."""
    if k >= logits.shape[-1]:
        return logits
    _, ids = lax.top_k(logits, k)
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), ids, True, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def top_p(logits: Float[Array, "B V"], p: float) -> Float[Array, "B V"]:
    """−∞ outside the smallest set of a row's likeliest tokens whose probability is at least p.

    A token stays while the mass before it is below p, so the one that crosses p stays, and there is always one.
    """
    ids = jnp.argsort(logits, axis=-1, descending=True)
    pi = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), ids, axis=-1)
    before = jnp.cumsum(pi, axis=-1) - pi
    kept = jnp.put_along_axis(jnp.zeros(logits.shape, bool), ids, before < p, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


BLOCK = 512
"""Tokens of a block of the vocabulary in `draw`."""


def draw(log_pi: Float[Array, "B V"], bits: UInt32[Array, "B 2"]) -> Int[Array, " B"]:
    """A token of each row from π, in two levels: a block of the vocabulary from the block sums, then a token of it.

        P(token) = P(block) · P(token | block),   each a multiple of 2⁻³¹ (`_weights`)

    `bits` are 64 random bits per row, 32 for each level. One uniform float32 number, a multiple of 2⁻²³, could not
    reach most of 150,000 tokens that share 1 % of the mass; nor could a float32 cumulative sum tell them apart. A
    token of probability 0 is never drawn.
    """
    B, V = log_pi.shape
    size = min(BLOCK, V)
    pi = jnp.pad(jnp.exp(log_pi), ((0, 0), (0, -V % size))).reshape(B, -1, size)
    block = _pick(jnp.sum(pi, axis=-1), bits[:, 0])
    inside = jnp.take_along_axis(pi, block[:, None, None], axis=1)[:, 0]
    return block * size + _pick(inside, bits[:, 1])


def _pick(masses: Float[Array, "B n"], bits: UInt32[Array, " B"]) -> Int[Array, " B"]:
    """i with probability `_weights(masses)`_i / 2³¹: the first whose cumulative weight exceeds the first 31 bits."""
    reached = jnp.cumsum(_weights(masses), axis=-1)
    return jnp.argmax(reached > (bits >> 1)[:, None], axis=-1).astype(jnp.int32)


def _weights(masses: Float[Array, "B n"]) -> UInt32[Array, "B n"]:
    """2³¹ · masses / Σ masses as integers, whose cumulative sums are exact; the largest takes the rounding.

    They add to 2³¹. A mass of 0 has weight 0, and one below 2⁻³² of the sum may have.
    """
    whole = jnp.uint32(2**31)
    shares = masses / jnp.sum(masses, axis=-1, keepdims=True)
    weights = jnp.round(shares * 2.0**31).astype(jnp.uint32)
    largest = jnp.arange(masses.shape[-1])[None] == jnp.argmax(masses, axis=-1, keepdims=True)
    missing = whole - jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.uint32)  # modulo 2³², as the next line adds
    return weights + jnp.where(largest, missing, jnp.uint32(0))


def choose(
    logits: Float[Array, "B V"], keys: Array, config: SamplingConfig
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """One token a row, its log π under the tempered policy, and its log-probability in the draw.

    The two differ by the truncation only. Greedy takes the largest logit: log π is then that of temperature 1, and the
    draw is certain (0).
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
