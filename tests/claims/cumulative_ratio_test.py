"""CTPO's cumulative ratio (2605.07331) on problems small enough to list every trajectory, in float64."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, policy_loss, ratio

NOTHING = ratio.local_gradient(partial(ratio.clamp, limit=0.0))  # e^f = 1: no correction
RATIOS = {
    "cumulative": ratio.local_gradient(ratio.cumulative),
    "sequence": ratio.local_gradient(ratio.sequence_sum),
    "token": ratio.token,
    "gspo": ratio.local_gradient(ratio.sequence_mean),  # for A that varies within the sequence
    "none": NOTHING,
}


class Problem(NamedTuple):
    """All trajectories of T tokens over V, two tabular policies, and the rewards."""

    tokens: np.ndarray  # [V^T, T]
    states: np.ndarray  # [V^T, T], the number of the prefix before each token
    old: np.ndarray  # logits [states, V] of the policy that sampled
    new: np.ndarray  # and of the policy that trains
    rewards: np.ndarray  # [V^T]


def make_problem(seed, move, vocabulary=3, length=3):
    rng = np.random.default_rng(seed)
    tokens = np.array(list(itertools.product(range(vocabulary), repeat=length)))
    prefixes = {
        p: i for i, p in enumerate(p for t in range(length) for p in itertools.product(range(vocabulary), repeat=t))
    }
    states = np.array([[prefixes[tuple(row[:t])] for t in range(length)] for row in tokens])
    old = rng.normal(size=(len(prefixes), vocabulary))
    return Problem(tokens, states, old, old + move * rng.normal(size=old.shape), rng.normal(size=len(tokens)))


def log_pi(logits, problem):
    """log π of every token of every trajectory."""
    return jax.nn.log_softmax(logits)[problem.states, problem.tokens]


def true_gradient(problem):
    return jax.grad(lambda x: jnp.sum(jnp.exp(jnp.sum(log_pi(x, problem), -1)) * problem.rewards))(problem.new)


def advantages_of_policy(problem):
    """A^π(prefix, token) = Q − V of the policy that trains, on every token."""
    pi = np.exp(np.sum(log_pi(problem.new, problem), -1))
    value = {}
    for t in range(problem.tokens.shape[1] + 1):
        keys = [tuple(row[:t]) for row in problem.tokens]
        for key in set(keys):
            here = np.array([k == key for k in keys])
            value[key] = np.sum(pi[here] * problem.rewards[here]) / np.sum(pi[here])
    length = problem.tokens.shape[1]
    return np.array([[value[tuple(r[: t + 1])] - value[tuple(r[:t])] for t in range(length)] for r in problem.tokens])


def expected_gradient(problem, advantages, name):
    """E over the policy that sampled of the policy gradient under that ratio."""
    old = log_pi(problem.old, problem)
    weights = jnp.broadcast_to(jnp.exp(jnp.sum(old, -1))[:, None], old.shape)
    batch = Batch(mask=jnp.ones(old.shape, bool), old_logp=old, advantages=jnp.asarray(advantages), weights=weights)
    return -jax.grad(lambda x: policy_loss(log_pi(x, problem), batch, RATIOS[name]))(problem.new)


def bias(problem, advantages, name):
    """|E ĝ − g| / |g|."""
    g = true_gradient(problem)
    return float(jnp.linalg.norm(expected_gradient(problem, advantages, name) - g) / jnp.linalg.norm(g))


def sequence_kl(problem):
    old, new = (np.sum(log_pi(x, problem), -1) for x in (problem.old, problem.new))
    return float(np.sum(np.exp(old) * (old - new)))


def term_variances(problem, advantages):
    """Trace of the variance of each token's term under the cumulative and under the sequence ratio, [2, T]."""
    old, new = (np.asarray(log_pi(x, problem)) for x in (problem.old, problem.new))
    pi = np.asarray(jax.nn.softmax(problem.new))
    one = np.eye(pi.shape[1])
    probability, out = np.exp(old.sum(-1)), []
    for l in (np.cumsum(new - old, -1), np.repeat((new - old).sum(-1, keepdims=True), new.shape[1], 1)):
        of_ratio = []
        for t in range(new.shape[1]):
            slope = one[problem.tokens[:, t]] - pi[problem.states[:, t]]
            scale = np.exp(l[:, t]) * advantages[:, t]
            mean = np.zeros_like(pi)
            np.add.at(mean, problem.states[:, t], (probability * scale)[:, None] * slope)
            of_ratio.append(np.sum(probability * scale**2 * np.sum(slope**2, -1)) - np.sum(mean**2))
        out.append(of_ratio)
    return np.array(out)


MOVES = (0.1, 0.3, 0.6, 1.0)


@pytest.mark.parametrize("move", MOVES)
def test_ctpo_under_the_policys_advantage_is_unbiased_and_the_others_are_not(move):
    with jax.enable_x64(True):
        for seed in range(3):
            problem = make_problem(seed, move)
            A = advantages_of_policy(problem)
            for name in ("cumulative", "sequence"):
                assert bias(problem, A, name) < 1e-12
            for name in ("token", "gspo", "none"):
                assert bias(problem, A, name) > 5e-3


@pytest.mark.parametrize("move", MOVES)
def test_ctpo_under_the_outcome_is_biased_where_the_whole_sequence_is_not(move):
    with jax.enable_x64(True):
        for seed in range(3):
            problem = make_problem(seed, move)
            R = np.repeat(problem.rewards[:, None], 3, 1)
            assert bias(problem, R, "sequence") < 1e-12
            assert bias(problem, R, "cumulative") > 5e-3


def test_ctpo_per_token_variance_is_never_above_the_sequences_under_the_policys_advantage():
    with jax.enable_x64(True):
        lower = 0
        for seed in range(20):
            problem = make_problem(seed, 0.6)
            cumulative, sequence = term_variances(problem, advantages_of_policy(problem))
            assert np.all(cumulative <= sequence * (1 + 1e-12))
            lower += np.sum(cumulative < 0.9 * sequence)
        assert lower > 20  # and by more than a tenth in many


def test_ctpo_under_the_outcome_the_ordering_has_exceptions():
    with jax.enable_x64(True):
        exceptions = sum(outcome_exceptions(seed) for seed in range(20))
    assert 0 < exceptions < 0.5 * 60


def outcome_exceptions(seed):
    problem = make_problem(seed, 0.6)
    cumulative, sequence = term_variances(problem, np.repeat(problem.rewards[:, None], 3, 1))
    return int(np.sum(cumulative > sequence * (1 + 1e-9)))
