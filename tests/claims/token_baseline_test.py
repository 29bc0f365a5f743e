"""Optimal token baselines (2602.07078), by enumeration of words and of groups of N words, in float64."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage
from rljax.objective import required_fields
from tests.claims.words import all_words, probabilities, slopes

WORDS = all_words(3, 3, ends=True)
SAME = all_words(2, 3)
KINDS = ("binary", "dense")


class Problem(NamedTuple):
    mask: np.ndarray  # [W, T]
    rewards: np.ndarray  # [W], or dense [W, T]
    probability: np.ndarray  # [W]
    slopes: np.ndarray  # ∇ log π of each token, [W, T, parameters]


def make_problem(words, kind, seed, shared=False):
    """A random problem. The policy depends on the prefix or, if `shared`, only on the last token."""
    rng = np.random.default_rng(seed)
    of_token = rng.normal(size=(words.states.max() + 1, words.tokens.max() + 1))[words.states, words.tokens]
    if shared:
        words = words._replace(states=np.pad(words.tokens, ((0, 0), (1, 0)))[:, :-1])
    logits = rng.normal(size=(words.states.max() + 1, words.tokens.max() + 1))
    binary = rng.permutation(np.arange(len(words.mask)) % 2 * 1.0)
    rewards = binary if kind == "binary" else np.where(words.mask, of_token, 0)
    probability, slope = map(np.asarray, policy(logits, words))
    return Problem(words.mask, rewards, probability, slope)


@jax.jit
def policy(logits, words):
    return probabilities(logits, words), slopes(logits, words)


def returns(problem):
    if problem.rewards.ndim == 1:
        return jnp.where(problem.mask, problem.rewards[:, None], 0.0)
    return jnp.cumsum(problem.rewards[:, ::-1], -1)[:, ::-1]


def variance(probability, g):
    mean = probability @ g
    return probability @ jnp.sum(g**2, -1) - mean @ mean


@jax.jit
@jax.vmap
def population(problem):
    """Variance of one word's gradient for baselines computed on the whole population, weighted by probability."""
    mask, rewards, p, s = problem
    G, e = returns(problem), jnp.sum(s**2, -1)
    total = rewards if rewards.ndim == 1 else jnp.sum(rewards, -1)

    def energy(W):
        return advantage.exact_energy_baseline(rewards[None], mask[None], energy=(p[:, None] * W)[None])[0]

    importance = jnp.sqrt(jnp.broadcast_to(p[:, None], e.shape))[None]
    best = jnp.einsum("w,wtd,wud,wu->t", p, s, s, G) / (p @ e)  # zero of ∂ variance / ∂ b_t
    advantages = {
        "mean": (total - p @ total)[:, None],
        "mean to go": energy(jnp.ones_like(e)),
        "optimum": G - best[None],
        "realized energy": advantage.optimal_token_baseline(
            rewards[None], mask[None], proxy=e[None], importance=importance
        )[0],
        "exact energy": energy(jnp.sum(jnp.cumsum(s, 1) ** 2, -1)),
        "token energy": energy(e),
    }
    return {name: variance(p, jnp.einsum("wt,wtd->wd", jnp.where(mask, A, 0.0), s)) for name, A in advantages.items()}


def populations(kind, shared, count=50):
    problems = [make_problem(WORDS, kind, seed, shared) for seed in range(count)]
    return jax.tree.map(np.asarray, population(Problem(*map(np.stack, zip(*problems, strict=True)))))


BASELINES = (
    advantage.mean_baseline,
    advantage.leave_one_out,
    advantage.optimal_token_baseline,
    advantage.leave_one_out_token_baseline,
)


def groups(problem, count, drawn=2000):
    """All multisets of N words [M, N] and their probabilities; 2000 sampled groups and None if there are too many."""
    words = len(problem.probability)
    if math.comb(words + count - 1, count) > 5000:
        return np.random.default_rng(0).choice(words, (drawn, count), p=problem.probability), None
    numbers = np.array(list(itertools.combinations_with_replacement(range(words), count)))
    of_word = (numbers[..., None] == np.arange(words)).sum(1)
    ways = [math.factorial(count) / math.prod(map(math.factorial, row)) for row in of_word.tolist()]
    return numbers, np.array(ways) * np.prod(problem.probability**of_word, -1)


@jax.jit
def group_gradients(problem, numbers):
    """ĝ [M, parameters] for each baseline: group mean of Σ_t A_t ∇ log π_t."""
    mask, rewards, s = (x[numbers] for x in (problem.mask, problem.rewards, problem.slopes))
    out = {}
    for f in BASELINES:
        named = {"proxy": jnp.sum(s**2, -1)} if required_fields(f) else {}
        A = f(rewards, mask, **named)
        out[f.__name__] = jnp.einsum("mgt,mgtd->md", A, s) / numbers.shape[1]
    return out


def measure(problem, count):
    """Per baseline: projection of E ĝ on the true gradient g, error |E ĝ − g| / |g| and variance; ± is the half-width
    of the 95 % interval, 0 if the groups are enumerated."""
    numbers, p = groups(problem, count)
    drawn, p = p is None, np.full(len(numbers), 1 / len(numbers)) if p is None else p
    g = np.einsum("w,wt,wtd->d", problem.probability, np.asarray(returns(problem)), problem.slopes)
    found = {name: np.asarray(x) for name, x in group_gradients(problem, numbers).items()}
    out = {}
    for name, x in found.items():
        # For sampled groups, RLOO's unbiased gradient is a control variate.
        along = (x - found["leave_one_out"] * drawn) @ g / (g @ g) + drawn
        square = np.sum((x - p @ x) ** 2, -1)
        half = [1.96 * np.std(y) / len(y) ** 0.5 * drawn for y in (along, square)]
        error = np.linalg.norm(p @ x - g) / np.linalg.norm(g)
        out[name] = {
            "share": p @ along,
            "error": error,
            "variance": p @ square,
            "share±": half[0],
            "variance±": half[1],
        }
    return out


@pytest.mark.parametrize(("kind", "shared"), [("binary", False), ("binary", True), ("dense", True)])
def test_the_optimal_baseline_has_the_least_variance_and_realized_energy_usually_beats_the_mean(kind, shared):
    with jax.enable_x64(True):
        found = populations(kind, shared)
    best, constant = found["optimum"], found["mean" if kind == "binary" else "mean to go"]
    for name in found.keys() - ({"mean"} if kind == "dense" else set()):
        assert np.all(best <= found[name] * (1 + 1e-12))
    if not shared:  # positions share no parameters, so token energy is optimal
        np.testing.assert_allclose(found["token energy"], best, rtol=1e-12)
        np.testing.assert_allclose(found["exact energy"], found["realized energy"], rtol=1e-12)
    ratio = found["realized energy"] / constant
    assert np.mean(ratio <= 1) >= 0.85
    assert 0.86 < np.median(ratio) < 0.97
    assert np.median(found["realized energy"] / best) > 1.01


@pytest.mark.parametrize("count", [2, 4, 8, pytest.param(32, marks=pytest.mark.slow)])  # 8 and 32 sample groups
@pytest.mark.parametrize("kind", KINDS)
def test_own_sample_baselines_shrink_the_gradient_and_leave_one_out_does_not(kind, count):
    with jax.enable_x64(True):
        found = [measure(make_problem(WORDS, kind, seed), count) for seed in range(3)]
    listed = count <= 4
    for of in found:
        mean, unbiased, own, left = (of[f.__name__] for f in BASELINES)
        np.testing.assert_allclose(mean["variance"], (1 - 1 / count) ** 2 * unbiased["variance"], rtol=1e-12)
        assert unbiased["error"] < (1e-12 if listed else 0.1)
        assert left["error"] < (1e-12 if listed else 0.1)
        assert abs(left["share"] - 1) <= 2 * left["share±"] + 1e-12
        assert abs(mean["share"] - (1 - 1 / count)) <= 2 * mean["share±"] + 1e-12
        if listed:
            np.testing.assert_allclose([mean["share"], mean["error"]], [1 - 1 / count, 1 / count], rtol=1e-12)
            assert mean["share±"] == own["share±"] == 0
        if count > 2:  # more shrinkage and a larger error than the mean baseline
            assert own["share"] + own["share±"] < 1 - 1 / count
            assert own["error"] > mean["error"]


def test_own_samples_shrink_the_gradient_by_more_where_lengths_are_equal_too():
    with jax.enable_x64(True):
        found = [measure(make_problem(SAME, "binary", seed), 2)["optimal_token_baseline"] for seed in range(5)]
    assert all(own["share"] < 0.5 < own["error"] for own in found)
