"""CTPO's cumulative ratio (2605.07331), by enumeration of all trajectories of small problems in float64."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, ratio
from tests.claims.words import all_words, log_pi, probabilities, scales, slopes, true_gradient

NOTHING = ratio.local_gradient(partial(ratio.clamp, limit=0.0))  # e^f = 1: no correction
RATIOS = {
    "cumulative": ratio.local_gradient(ratio.cumulative),
    "sequence": ratio.local_gradient(ratio.sequence_sum),
    "token": ratio.token,
    "gspo": ratio.local_gradient(ratio.sequence_mean),  # for A that varies within a sequence
    "none": NOTHING,
}
WORDS = all_words(vocabulary=3, length=3)
MOVES = (0.1, 0.3, 0.6, 1.0)


class Problem(NamedTuple):
    """Two tabular policies and the rewards of all trajectories, stacked over problems."""

    old: np.ndarray  # logits [states, V] of the sampling policy
    new: np.ndarray  # logits [states, V] of the trained policy
    rewards: np.ndarray  # [W]


def make_problems(move, count=20):
    def one(seed):
        rng = np.random.default_rng(seed)
        old = rng.normal(size=(WORDS.states.max() + 1, 3))
        return Problem(old, old + move * rng.normal(size=old.shape), rng.normal(size=len(WORDS.mask)))

    return Problem(*map(np.stack, zip(*map(one, range(count)), strict=True)))


def advantages_of_policy(problem):
    """A^π(prefix, token) = Q − V of the trained policy, for each token."""
    pi = probabilities(problem.new, WORDS)

    def value(t):  # value of the first t tokens of each word
        of_prefix = pi.reshape(3**t, -1), (pi * problem.rewards).reshape(3**t, -1)
        mass, earned = (jnp.sum(x, -1) for x in of_prefix)
        return jnp.repeat(earned / mass, 3 ** (3 - t))

    return jnp.stack([value(t + 1) - value(t) for t in range(3)], -1)


@jax.jit
@jax.vmap
def measure(problem):
    """Sequence KL and, by advantage and ratio, the bias |E ĝ − g| / |g| and the variance of each token's term [T]."""
    old, new = (log_pi(x, WORDS) for x in (problem.old, problem.new))
    probability, slope = probabilities(problem.old, WORDS), slopes(problem.new, WORDS)
    g = true_gradient(problem.new, WORDS, problem.rewards)
    outcome = jnp.repeat(problem.rewards[:, None], 3, 1)
    out = {"kl": jnp.sum(probability * jnp.sum(old - new, -1)), "policy": {}, "outcome": {}}
    for kind, A in (("policy", advantages_of_policy(problem)), ("outcome", outcome)):
        batch = Batch(mask=jnp.asarray(WORDS.mask), old_logp=old, advantages=A, weights=jnp.ones_like(A))
        for name, f in RATIOS.items():
            terms = scales(new, batch, f)[..., None] * slope
            mean = jnp.einsum("w,wtd->td", probability, terms)
            square = jnp.einsum("w,wtd,wtd->t", probability, terms, terms)
            bias = jnp.linalg.norm(jnp.sum(mean, 0) - g) / jnp.linalg.norm(g)
            out[kind][name] = {"bias": bias, "variance": square - jnp.sum(mean**2, -1)}
    return out


@pytest.fixture(scope="module")
def measured():
    with jax.enable_x64(True):
        return {move: jax.tree.map(np.asarray, measure(make_problems(move))) for move in MOVES}


@pytest.mark.parametrize("move", MOVES)
def test_under_the_policys_advantage_the_prefix_ratio_is_unbiased_and_the_others_are_not(measured, move):
    of = measured[move]["policy"]
    assert np.all((of["cumulative"]["bias"] < 1e-12) & (of["sequence"]["bias"] < 1e-12))
    average = {0.1: 0.05, 0.3: 0.15, 0.6: 0.29, 1.0: 0.42}[move]
    for name in ("token", "gspo"):
        assert np.all(of[name]["bias"] > 0.01)
        np.testing.assert_allclose(np.mean(of[name]["bias"]), average, rtol=0.1)
        assert np.mean(of["none"]["bias"]) > 1.4 * np.mean(of[name]["bias"])


@pytest.mark.parametrize("move", MOVES)
def test_under_the_outcome_the_prefix_ratio_is_biased_and_the_sequences_is_not(measured, move):
    of = measured[move]["outcome"]
    assert np.all((of["sequence"]["bias"] < 1e-12) & (of["cumulative"]["bias"] > 0.01))
    share = np.mean(of["cumulative"]["bias"]) / np.mean(of["token"]["bias"])
    assert 0.65 < share < 0.75


def test_the_documented_distances_and_biases_under_the_outcome(measured):
    kl = np.stack([measured[move]["kl"] for move in MOVES])
    bias = np.stack([measured[move]["outcome"]["cumulative"]["bias"] for move in MOVES])
    np.testing.assert_allclose([kl.min(), kl.max()], [0.004, 1.085], atol=6e-4)
    np.testing.assert_allclose(bias.mean(1), [0.058, 0.175, 0.325, 0.459], atol=6e-4)


def variance_ratios(measured, move, kind):
    """Variance of the first two terms with the cumulative ratio, divided by that with the sequence ratio."""
    of = measured[move][kind]
    np.testing.assert_allclose(of["cumulative"]["variance"][:, 2], of["sequence"]["variance"][:, 2], rtol=1e-12)
    return (of["cumulative"]["variance"] / of["sequence"]["variance"])[:, :2]


def test_per_term_variance_is_never_above_the_sequences_under_the_policys_advantage(measured):
    for move in MOVES:
        assert np.all(variance_ratios(measured, move, "policy") < 1)
    assert np.median(variance_ratios(measured, 1.0, "policy")) < 0.6


def test_under_the_outcome_per_term_variance_may_exceed_the_sequences(measured):
    for move in MOVES:
        above = variance_ratios(measured, move, "outcome")
        assert 0.3 < np.mean(above > 1) < 0.6
        assert 1.1 < above.max() < 1.7
