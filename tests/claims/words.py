"""Policies over so few words that all of them can be listed: expectations are sums, in float64."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import policy_loss


class Words(NamedTuple):
    """Every word W of at most T tokens."""

    mask: np.ndarray  # [W, T]
    tokens: np.ndarray  # [W, T], 0 past the end
    states: np.ndarray  # [W, T], the number of the prefix before the token; 0 past the end


def all_words(vocabulary, length, ends=False):
    """The words of so many tokens; where `ends`, each ends at its first 0."""
    words = itertools.product(range(vocabulary), repeat=length)
    words = sorted({w[: w.index(0) + 1] if ends and 0 in w else w for w in words})
    prefixes = sorted({w[:t] for w in words for t in range(len(w))}, key=lambda p: (len(p), p))
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    mask = np.array([[t < len(w) for t in range(length)] for w in words])
    tokens = np.array([[w[t] if t < len(w) else 0 for t in range(length)] for w in words])
    return Words(mask, tokens, np.array([[number.get(w[:t], 0) * (t < len(w)) for t in range(length)] for w in words]))


def log_pi(logits, words):
    """log π of every token [W, T] under the logits [states, V]; 0 past the end."""
    return jnp.where(words.mask, jax.nn.log_softmax(logits)[words.states, words.tokens], 0.0)


def probabilities(logits, words):
    return jnp.exp(jnp.sum(log_pi(logits, words), -1))


def slopes(logits, words):
    """∇ log π of every token [W, T, parameters]."""
    return jax.jacfwd(log_pi)(logits, words).reshape(*words.mask.shape, -1)


def true_gradient(logits, words, rewards):
    """∇ E R of an outcome reward [W]."""
    return jax.grad(lambda x: jnp.sum(probabilities(x, words) * rewards))(logits).ravel()


def scales(logp, batch, ratio):
    """What the loss multiplies each token's ∇ log π by, at weight 1: A e^f where the gradient is each token's own."""
    return -jax.grad(policy_loss)(logp, batch, ratio)
