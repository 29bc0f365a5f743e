"""Policies over all W words of at most T tokens: expectations are exact sums, in float64."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import policy_loss


class Words(NamedTuple):
    mask: np.ndarray  # [W, T]
    tokens: np.ndarray  # [W, T], 0 after the end
    states: np.ndarray  # [W, T], index of the prefix before the token; 0 after the end


def all_words(vocabulary, length, ends=False):
    """All words of `length` tokens; with `ends`, a word ends at its first 0."""
    words = itertools.product(range(vocabulary), repeat=length)
    words = sorted({w[: w.index(0) + 1] if ends and 0 in w else w for w in words})
    prefixes = sorted({w[:t] for w in words for t in range(len(w))}, key=lambda p: (len(p), p))
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    mask = np.array([[t < len(w) for t in range(length)] for w in words])
    tokens = np.array([[w[t] if t < len(w) else 0 for t in range(length)] for w in words])
    return Words(mask, tokens, np.array([[number.get(w[:t], 0) * (t < len(w)) for t in range(length)] for w in words]))


def log_pi(logits, words):
    """log π of each token [W, T] for logits [states, V]; 0 after the end of a word."""
    return jnp.where(words.mask, jax.nn.log_softmax(logits)[words.states, words.tokens], 0.0)


def probabilities(logits, words):
    return jnp.exp(jnp.sum(log_pi(logits, words), -1))


def slopes(logits, words):
    """∇ log π of each token, [W, T, parameters]."""
    return jax.jacfwd(log_pi)(logits, words).reshape(*words.mask.shape, -1)


def true_gradient(logits, words, rewards):
    """∇ E R, where `rewards` [W] are outcome rewards."""
    return jax.grad(lambda x: jnp.sum(probabilities(x, words) * rewards))(logits).ravel()


def scales(logp, batch, ratio):
    """−∂L/∂logp: factor of each token's ∇ log π in the policy gradient, A e^f for weight 1 and a token-level ratio."""
    return -jax.grad(policy_loss)(logp, batch, ratio)
