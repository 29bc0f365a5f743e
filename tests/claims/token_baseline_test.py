"""Optimal token baselines (2602.07078), over all groups of N of three words, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage

WORDS = ((0,), (1, 0), (1, 1))  # 0 ends
LOGITS = np.array([[0.4, -0.3], [-0.2, 0.7]])  # after nothing, and after 1


def groups(count):
    """Every multiset of `count` words: the words' numbers, and its probability."""
    pi = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    p = np.array([np.prod([pi[t, token] for t, token in enumerate(word)]) for word in WORDS])
    numbers = np.array(list(itertools.combinations_with_replacement(range(3), count)))
    of_word = np.stack([(numbers == w).sum(-1) for w in range(3)], -1)
    ways = [math.factorial(count) / math.prod(map(math.factorial, row)) for row in of_word.tolist()]
    return numbers, np.array(ways) * np.prod(p**of_word, -1), p, pi


def gradient_of_groups(f, count, rewards):
    """(E ĝ, E|ĝ − E ĝ|²) over all groups, ĝ the mean over the group of Σ_t A_t ∇ log π_t."""
    numbers, probability, _, pi = groups(count)
    mask = np.array([[len(word) > t for t in range(2)] for word in WORDS])
    token = np.array([[word[t] if len(word) > t else 0 for t in range(2)] for word in WORDS])
    taken = pi[[0, 1], token]
    proxy = np.where(mask, 1 - 2 * taken + np.sum(pi**2, -1), 0)
    named = {"proxy": jnp.asarray(proxy[numbers])} if "token_baseline" in f.__name__ else {}
    A = np.asarray(f(jnp.asarray(rewards[numbers]), jnp.asarray(mask[numbers]), **named))
    slope = np.eye(2)[token] - pi[None]  # [word, t, logits]
    g = np.einsum("mgt,mgtv->mtv", A, (slope * mask[..., None])[numbers]) / count
    mean = np.einsum("m,mtv->tv", probability, g)
    return mean, float(probability @ np.sum((g - mean) ** 2, (1, 2)))


def true_group_gradient(rewards):
    _, _, p, pi = groups(1)
    out = np.zeros_like(pi)
    for word, q, r in zip(WORDS, p, rewards, strict=True):
        for t, token in enumerate(word):
            earned = r if np.ndim(r) == 0 else r[t:].sum()
            out[t] += q * earned * (np.eye(2)[token] - pi[t])
    return out


def share(mean, g):
    """The length of the mean along the true gradient."""
    return float(np.sum(mean * g) / np.sum(g * g))


REWARDS = {"binary": np.array([1.0, 0.0, 1.0]), "dense": np.array([[0.7, 0.0], [-0.2, 0.5], [-0.2, 1.5]])}


@pytest.mark.parametrize("count", [2, 4, 8, 32])
@pytest.mark.parametrize("kind", REWARDS)
def test_own_sample_baselines_shrink_the_gradient_and_leave_one_out_does_not(kind, count):
    with jax.enable_x64(True):
        rewards = REWARDS[kind]
        g = true_group_gradient(rewards)
        left, _ = gradient_of_groups(advantage.leave_one_out_token_baseline, count, rewards)
        np.testing.assert_allclose(left, g, atol=1e-12)
        own, _ = gradient_of_groups(advantage.optimal_token_baseline, count, rewards)
        assert share(own, g) < 1 - 1e-3
        mean, _ = gradient_of_groups(advantage.mean_baseline, count, rewards)
        np.testing.assert_allclose(mean, (1 - 1 / count) * g, atol=1e-12)  # GRPO's mean, exactly; RLOO's not at all
        unbiased, _ = gradient_of_groups(advantage.leave_one_out, count, rewards)
        np.testing.assert_allclose(unbiased, g, atol=1e-12)
        if kind == "binary":
            # By more, since lengths vary; not at N = 2: past the other's end the baseline is the other's alone.
            assert (share(own, g) < 1 - 1 / count) == (count > 2)
