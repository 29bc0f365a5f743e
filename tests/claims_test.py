"""What the papers claim, tried on problems small enough to list every trajectory (float64); figures in docs/claims.md.

`python tests/claims_test.py` prints the figures.
"""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, advantage, aggregation, policy_loss, ratio

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


# 2. The spread of the cumulative log-ratio grows as √t, its mean as −KL·t.


def cumulative_log_ratios(kl=5e-3, length=4096, rows=2000, seed=0):
    """Σ_{j≤t} ℓ_j of tokens drawn from 50 categorical pairs of old and new, each at that KL(old ‖ new)."""
    rng = np.random.default_rng(seed)
    old = rng.dirichlet(np.ones(20), 50)
    noise = rng.normal(size=old.shape)
    scales = np.full((50, 1), 0.1)
    for _ in range(30):  # to the KL wanted
        new = old * np.exp(scales * noise)
        new /= new.sum(-1, keepdims=True)
        scales *= np.sqrt(kl / np.sum(old * np.log(old / new), -1, keepdims=True))
    kinds = rng.integers(0, 50, (rows, length))
    picks = (rng.random((rows, length))[..., None] > np.cumsum(old, -1)[kinds]).sum(-1) if rows * length < 1e6 else None
    if picks is None:
        picks = np.empty((rows, length), np.int64)
        for k in range(50):
            here = kinds == k
            picks[here] = rng.choice(20, here.sum(), p=old[k])
    return np.cumsum(np.log(new / old)[kinds, picks], -1)


def test_the_spread_grows_as_the_root_of_the_position_and_the_mean_falls_with_it():
    l, at = cumulative_log_ratios(), np.array([16, 64, 256, 1024, 4096]) - 1
    spread, mean = l[:, at].std(0), l[:, at].mean(0)
    flat = spread / np.sqrt(at + 1)
    assert flat.max() / flat.min() < 1.15  # 2000 rows: a standard deviation is known to 1.6 %
    assert spread[-1] / spread[0] > 13  # a fixed clip has no such width: √256 = 16
    np.testing.assert_allclose(mean[2:], -5e-3 * (at[2:] + 1), rtol=0.06)
    assert np.mean(l[:, -1] < -2 * flat.mean() * np.sqrt(4096)) > 0.8
    assert np.mean(l[:, 15] < -2 * flat.mean() * 4) < 0.1


# 3. Optimal token baselines, over all groups of N trajectories.

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


# 4. Balanced Aggregation and HölderPO.


def test_balanced_weights_do_not_know_a_sides_length():
    """Twice as long on the negative side: a token mean gives it twice the weight, BA what its members are."""
    lengths, sign = np.array([[4, 4, 8, 8], [4, 4, 4, 8]]), np.array([[1, 1, -1, -1], [1, 1, 1, -1]])
    mask = np.arange(8) < lengths[..., None]
    w = {f.__name__: np.asarray(f(mask, sign)).sum(-1) for f in (aggregation.token_mean, aggregation.balanced)}
    np.testing.assert_allclose(w["token_mean"][0, 2:].sum() / w["token_mean"][0, :2].sum(), 2)
    np.testing.assert_allclose(w["balanced"][0, 2:].sum() / w["balanced"][0, :2].sum(), 1)
    np.testing.assert_allclose(w["balanced"][1, 3:].sum() / w["balanced"][1, :3].sum(), 1 / 3, rtol=1e-6)


def test_where_balanced_is_each_of_the_others():
    def same(lengths, sign, other):
        mask = np.arange(8) < np.array(lengths)[..., None]
        return np.allclose(aggregation.balanced(mask, np.array(sign)), other(mask, np.array(sign)), atol=1e-7)

    sides = [[1, 1, -1, -1]] * 2
    each_side = [[4, 4, 8, 8], [2, 2, 6, 6]]  # equal lengths on each side, equal group sizes
    mean_sides = [[2, 6, 3, 5], [1, 3, 2, 2]]  # equal mean lengths of both sides
    assert same(each_side, sides, aggregation.sequence_mean)
    assert not same(mean_sides, sides, aggregation.sequence_mean)
    assert same(mean_sides, sides, aggregation.group_mean)
    assert not same(each_side, sides, aggregation.group_mean)
    assert same([[2, 6, 3, 5], [4, 4, 4, 4]], sides, aggregation.token_mean)  # and equal tokens per group
    assert not same(mean_sides, sides, aggregation.token_mean)


def holder_weights(l, p):
    """The share of each token in the gradient of the power mean."""
    segments = jnp.ones(l.shape, bool)
    return np.asarray(jax.grad(lambda x: jnp.sum(ratio.power_mean(x, jnp.ones_like(x), segments, p=p)[:, 0]))(l))


def test_holders_weights_are_most_even_at_zero():
    with jax.enable_x64(True):
        l = jnp.asarray(np.random.default_rng(0).normal(size=(20, 12)) * 0.5)
        entropy = {
            p: -np.sum((w := holder_weights(l, p)) * np.log(w), -1) for p in (-4.0, -2.0, -0.5, 0.0, 0.5, 2.0, 4.0)
        }
    np.testing.assert_allclose(entropy[0.0], np.log(12), rtol=1e-12)
    for rising in ((-4.0, -2.0, -0.5, 0.0), (4.0, 2.0, 0.5, 0.0)):
        for low, high in itertools.pairwise(rising):
            assert np.all(entropy[low] < entropy[high])


def test_holders_limits_are_gspo_grpo_and_gmpo():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        l, sign = jnp.asarray(rng.normal(size=(8, 12)) * 0.4), np.sign(rng.normal(size=(8, 1)))
        mask = jnp.asarray(np.arange(12) < rng.integers(2, 13, (8, 1)))
        A = jnp.asarray(np.repeat(sign, 12, 1))
        weights = aggregation.sequence_mean(mask[None], jnp.asarray(sign[:, 0])[None])[0]
        batch = Batch(mask=mask, old_logp=jnp.zeros_like(l), advantages=A, weights=weights)

        def gradient(f):
            return np.asarray(jax.grad(policy_loss)(l, batch, f))

        clip, log_clip = (partial(f, low=0.2, high=0.2) for f in (ratio.clip, ratio.log_clip))
        pooled = {p: partial(ratio.power_mean, p=p) for p in (0.0, 1.0)}
        pairs = [
            (ratio.chain(pooled[0.0], clip), ratio.chain(ratio.sequence_mean, clip)),  # sequence clip: GSPO
            (ratio.chain(clip, pooled[1.0]), clip),  # token clip: GRPO
            (ratio.chain(log_clip, pooled[0.0]), ratio.chain(log_clip, ratio.sequence_mean)),  # GMPO
        ]
        for f, limit in pairs:
            np.testing.assert_allclose(gradient(f), gradient(limit), atol=1e-13)
        assert not np.allclose(gradient(ratio.chain(pooled[1.0], clip)), gradient(clip), atol=1e-3)


def print_figures():
    with jax.enable_x64(True):
        for move in MOVES:
            problems = [make_problem(seed, move) for seed in range(5)]
            for kind in ("policy's advantage", "outcome"):
                A = [
                    advantages_of_policy(p) if kind != "outcome" else np.repeat(p.rewards[:, None], 3, 1)
                    for p in problems
                ]
                kls = [sequence_kl(p) for p in problems]
                print(f"KL {min(kls):.3f}–{max(kls):.3f}, {kind}:", end=" ")
                for name in RATIOS:
                    values = [100 * bias(p, a, name) for p, a in zip(problems, A, strict=True)]
                    print(f"{name} {min(values):.1f}–{max(values):.1f} %", end="  ")
                print()
        ratios = [
            np.divide(*term_variances(p, advantages_of_policy(p))) for p in (make_problem(s, 0.6) for s in range(20))
        ]
        print(f"variance, cumulative / sequence: {np.min(ratios):.2f}–{np.max(ratios):.2f}")
        print("exceptions under the outcome:", sum(outcome_exceptions(seed) for seed in range(20)), "of 60")
        for kind, rewards in REWARDS.items():
            g = true_group_gradient(rewards)
            for count in (2, 4, 8, 32):
                print(f"{kind} N = {count}:", end=" ")
                for f in ("mean_baseline", "leave_one_out", "optimal_token_baseline", "leave_one_out_token_baseline"):
                    mean, variance = gradient_of_groups(getattr(advantage, f), count, rewards)
                    scaled = share(mean, g)
                    print(f"{f} {scaled:.3f}, variance {variance:.4f}, /share² {variance / scaled**2:.4f}", end="; ")
                print()
    l, at = cumulative_log_ratios(), np.array([16, 64, 256, 1024, 4096]) - 1
    flat = l[:, at].std(0) / np.sqrt(at + 1)
    print("spread/√t", np.round(flat, 4), "mean", np.round(l[:, at].mean(0), 3))
    print("below −2σ√t:", [f"{np.mean(l[:, t] < -2 * flat.mean() * np.sqrt(t + 1)):.3f}" for t in at])


if __name__ == "__main__":
    print_figures()
