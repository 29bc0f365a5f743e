"""One token a row from given logits: tempering, truncation, and the draw."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

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


def draw(log_pi: Float[Array, "B V"], uniform: Float[Array, " B"]) -> Int[Array, " B"]:
    """The token at which the cumulative distribution of π first exceeds u: one uniform number in [0, 1) a row.

    Never a token of probability 0, whatever the rounding of the cumulative sum.
    """
    pi = jnp.exp(log_pi)
    reached = jnp.where(pi > 0, jnp.cumsum(pi, axis=-1), 0)
    return jnp.argmax(reached > uniform[:, None] * jnp.max(reached, axis=-1, keepdims=True), axis=-1).astype(jnp.int32)


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
    token = draw(truncated, jax.vmap(lambda key: jax.random.uniform(key, dtype=log_pi.dtype))(keys))
    return token, _at(log_pi, token), _at(truncated, token)


def _at(values: Array, token: Array) -> Array:
    return jnp.take_along_axis(values, token[:, None], axis=-1)[:, 0]
