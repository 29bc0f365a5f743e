"""One example with three or four tokens, worked by hand, for every public function."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import (
    Batch,
    advantage,
    aggregation,
    correction,
    distillation,
    metrics,
    penalty,
    ratio,
    regression,
    rewards,
)
from tests.together import together

LOG = np.log
ONES = np.ones((1, 3))
L, UP, DOWN, TOOL = [[0.1, 0.4, -0.5]], ONES, -ONES, np.array([[True, False, True]])
ALL = ONES > 0

RATIOS = {  # ℓ = .1, .4, −.5; the second is a tool token if that matters
    "token": (ratio.token, UP, ALL, [0.1, 0.4, -0.5]),
    "sequence_mean": (ratio.sequence_mean, UP, TOOL, [-0.2, 0, -0.2]),
    "sequence_sum": (ratio.sequence_sum, UP, TOOL, [-0.4, 0, -0.4]),
    "cumulative": (ratio.cumulative, UP, TOOL, [0.1, 0, -0.4]),
    "prefix_mean": (ratio.prefix_mean, UP, ALL, [0.1, 0.25, 0]),
    "prefix_min": (ratio.prefix_min, UP, ALL, [0.1, 0.5, -0.4]),
    "power_mean": (partial(ratio.power_mean, p=1.0), UP, TOOL, [LOG((np.exp(0.1) + np.exp(-0.5)) / 2), 0, None]),
    "clip": (partial(ratio.clip, low=0.2, high=0.2), UP, ALL, [0.1, LOG(1.2), -0.5]),
    "clip, A < 0": (partial(ratio.clip, low=0.2, high=0.2), DOWN, ALL, [0.1, 0.4, LOG(0.8)]),
    "clip, dual": (partial(ratio.clip, low=0.2, high=0.2, dual=1.25), DOWN, ALL, [0.1, LOG(1.25), LOG(0.8)]),
    "log_clip": (partial(ratio.log_clip, log_low=0.3, log_high=0.3), DOWN, ALL, [0.1, 0.4, -0.3]),
    "position_clip": (partial(ratio.position_clip, log_low=0.2, log_high=0.2), UP, ALL, [0.1, 0.2 * 2**0.5, -0.5]),
    "position_clip, A < 0": (
        partial(ratio.position_clip, log_low=0.2, log_high=1, log_dual=0.1),
        DOWN,
        TOOL,
        [0.1, None, -0.2 * 2**0.5],
    ),
    "two_sided_clip": (partial(ratio.two_sided_clip, low=0.2, high=0.2), UP, ALL, [0.1, LOG(1.2), LOG(0.8)]),
    "soft_gate": (ratio.soft_gate, UP, ALL, [LOG(4 / (1 + np.exp(1 - np.exp(x)))) for x in L[0]]),
    "chain": (ratio.chain(ratio.sequence_sum, partial(ratio.clamp, limit=0.3)), UP, TOOL, [-0.3, 0, -0.3]),
    "local_gradient": (
        lambda *x: jax.grad(lambda l: jnp.sum(ratio.local_gradient(ratio.cumulative)(l, *x[1:])))(x[0]),
        UP,
        ALL,
        [1, 1, 1],
    ),
    "gamma_gate": (ratio.gamma_gate, UP, ALL, [2 * x - 3 * (np.exp(x) - 1) for x in L[0]]),
    "gamma_gate, A < 0": (ratio.gamma_gate, DOWN, ALL, [3 * x - 2 * (np.exp(x) - 1) for x in L[0]]),
    "taper": (ratio.taper, DOWN, ALL, [0, 0, -0.5]),
    "taper, A > 0": (ratio.taper, UP, ALL, [0, 0, 0]),
    "clamp": (partial(ratio.clamp, limit=0.3), UP, ALL, [0.1, 0.3, -0.3]),
    "total_variation_mask": (
        partial(ratio.total_variation_mask, low=0.1, high=0.1, old_logp=LOG(ONES / 2)),
        UP,
        ALL,
        [0.1, -np.inf, -0.5],
    ),  # ½(e^.4 − 1) = .246
    "kl_mask": (partial(ratio.kl_mask, low=0.05, high=0.05, old_logp=LOG(ONES / 2)), UP, ALL, [0.1, -np.inf, -0.5]),
    "cumulative_divergence_mask": (
        partial(ratio.cumulative_divergence_mask, limit=0.15, slack=0.02, divergence=0.1 * ONES),
        UP,
        ALL,
        [0.1, -np.inf, -0.5],
    ),
}

R, M = np.array([[1.0, 0.0, 0.5]]), np.arange(2) < np.array([[[2], [2], [1]]])
PROXY = np.array([[[0.5, 1.5], [0.5, 0.5], [1.0, 9.0]]])
ADVANTAGES = {  # rewards 1, 0, .5 and lengths 2, 2, 1: A at the first and second token
    "group_relative": (advantage.group_relative, [[1, 1], [-1, -1], [0, 0]]),
    "mean_baseline": (advantage.mean_baseline, [[0.5, 0.5], [-0.5, -0.5], [0, 0]]),
    "leave_one_out": (advantage.leave_one_out, [[0.75, 0.75], [-0.75, -0.75], [0, 0]]),
    "length_weighted": (advantage.length_weighted, [[0.5, 0.5], [-0.5, -0.5], [0, 0]]),
    "max_rl": (advantage.max_rl, [[1, 1], [-1, -1], [0, 0]]),  # over a mean of ½
    "pass_at_k": (advantage.pass_at_k, [[0.5, 0.5], [0, 0], [0, 0]]),
    "task_relative": (partial(advantage.task_relative, task=np.array([3])), [[1, 1], [-1, -1], [0, 0]]),
    "without_negatives": (
        partial(advantage.without_negatives(advantage.task_relative), task=np.array([3]), dropping=np.array(True)),
        [[1, 1], [0, 0], [0, 0]],
    ),
    "policy_improvement": (partial(advantage.policy_improvement, improvement=2.0), [[3, 3], [-3, -3], [0, 0]]),
    "prefix_tree": (  # one shared first token, then two branches: V = ½, then 1 and 0
        partial(advantage.prefix_tree, tokens=np.array([[[7, 1], [7, 2], [7, 0]]])),
        [[1, 2], [-1, -2], [0, 0]],
    ),
    "discounted_returns": (partial(advantage.discounted_returns, gamma=0.5), [[0.5, 1], [0, 0], [0.5, 0]]),
    "remax": (partial(advantage.remax, greedy_rewards=np.array([0.25])), [[0.75, 0.75], [-0.25, -0.25], [0.25, 0]]),
    "generalized_advantage_estimation": (  # V = ½: δ = −¼, ½ | −¼, −½ | 0
        partial(advantage.generalized_advantage_estimation, values=np.full(M.shape, 0.5), gamma=0.5, lam=1.0),
        [[0, 0.5], [-0.5, -0.5], [0, 0]],
    ),
    "reinforce_plus_plus": (advantage.reinforce_plus_plus, [[1, 1], [-1, -1], [0, 0]]),
    "reinforce_plus_plus_baseline": (advantage.reinforce_plus_plus_baseline, [[1, 1], [-1, -1], [0, 0]]),
    "whitened": (advantage.whitened(advantage.mean_baseline), [[1, 1], [-1, -1], [0, 0]]),
    "whiten": (
        lambda r, m: advantage.whiten(jnp.where(m, jnp.asarray(r)[..., None], 9.0), m),
        [[1, 1], [-1, -1], [0, 0]],
    ),
    "standardized": (advantage.standardized(advantage.pass_at_k), [[1, 1], [0, 0], [0, 0]]),
    "multi_reward": (partial(advantage.multi_reward, components=np.stack([R, 5 * R], -1)), [[1, 1], [-1, -1], [0, 0]]),
    "optimal_token_baseline": (  # W = ½, ½, 1: B = ½; then 2 and 1: B = ⅔
        partial(advantage.optimal_token_baseline, proxy=PROXY),
        [[0.5, 1 / 3], [-0.5, -2 / 3], [0, 0]],
    ),
    "leave_one_out_token_baseline": (  # B = ⅓, ⅔, ½; then 0 and 1
        partial(advantage.leave_one_out_token_baseline, proxy=PROXY),
        [[2 / 3, 1], [-2 / 3, -1], [0, 0]],
    ),
    "exact_energy_baseline": (
        partial(advantage.exact_energy_baseline, energy=np.cumsum(PROXY, -1)),
        [[0.5, 1 / 3], [-0.5, -2 / 3], [0, 0]],
    ),
}

AGGREGATIONS = {  # lengths 2, 2, 1 and sides 1, −1, −1
    "token_mean": (aggregation.token_mean, [0.2, 0.2, 0.2]),
    "sequence_mean": (aggregation.sequence_mean, [1 / 6, 1 / 6, 1 / 3]),
    "group_mean": (aggregation.group_mean, [0.2, 0.2, 0.2]),
    "constant": (partial(aggregation.constant, max_length=10), [1 / 30] * 3),
    "balanced": (aggregation.balanced, [1 / 3 / 2, 2 / 3 / 3, 2 / 3 / 3]),
}

RHO, TWO = LOG([[2.0, 0.5, 3.0]]), np.array([[True, True, False]])
CORRECTIONS = {  # ρ = 2 and ½, and a masked token
    "token_truncated": (partial(correction.token_truncated, cap=1.5), [[1.5, 0.5, 0]]),
    "sequence_truncated": (partial(correction.sequence_truncated, cap=0.9), [[0.9, 0.9, 0]]),
    "icepop": (partial(correction.icepop, low=0.6, high=2.5), [[2, 0, 0]]),
    "sequence_masked": (partial(correction.sequence_masked, cap=1.1), [[1, 1, 0]]),
    "geometric": (partial(correction.geometric, low=1.01, high=2.0), [False]),  # their geometric mean is 1
    "k3": (partial(correction.k3, limit=0.24), [False]),  # (1 − log 2 + log 2 − ½)/2 = ¼
    "veto": (partial(correction.veto, least=0.4), [True]),
    "batch_normalized": (lambda x, m: correction.batch_normalized(jnp.exp(x), m), [[1.6, 0.4, 0]]),
    "report": (lambda x, m: correction.report(x, m)["chi_squared"], 1.125),  # (4 + ¼)/2 − 1
}

ONE_EACH, SIDES = np.ones((1, 2, 1), bool), np.array([[1, -1]])  # two completions of one token
APART = {"old_logp": np.full((1, 2, 1), -1.0), "sampled_logp": np.array([[[-1.0], [-1.0 - LOG(1.5)]]])}  # e^λ = 1, 1.5
IN_BOUNDS = partial(correction.geometric, low=0.5, high=1.25)  # keeps the first
H = jnp.asarray([[0.5, 1.0, 2.0]], jnp.float32)
BATCH = Batch(mask=jnp.asarray(TWO), old_logp=jnp.asarray(LOG([[0.25, 0.5, 0.5]]), jnp.float32),
              advantages=jnp.asarray([[1.0, -1.0, 1.0]]), weights=jnp.asarray([[0.5, 0.25, 9.0]]),
              ref_logp=jnp.asarray(LOG([[0.25, 0.5, 0.5]]), jnp.float32))  # fmt: skip
LOGP = jnp.asarray(LOG([[0.5, 0.25, 0.1]]), jnp.float32)  # ℓ = log 2, −log 2
OTHERS = {
    "weighted": (
        lambda: correction.weighted(aggregation.token_mean, correction.token_truncated)(ONE_EACH, SIDES, **APART),
        [[0.5, 0.75]],
    ),
    "aggregation_of_kept": (
        lambda: correction.aggregation_of_kept(aggregation.token_mean, IN_BOUNDS)(ONE_EACH, SIDES, **APART),
        [[1, 0]],
    ),
    "advantage_of_kept": (  # the first is alone in its group
        lambda: correction.advantage_of_kept(advantage.mean_baseline, IN_BOUNDS)(np.eye(2)[:1], ONE_EACH, **APART),
        [[0, 0]],
    ),
    "opsm": (  # log q − log p = ½ at both tokens
        lambda: correction.opsm(np.full((2, 1), -0.5), np.ones((2, 1), bool), np.array([1, -1]), limit=0.25),
        [True, False],
    ),
    "adaptive_entropy": (
        lambda: penalty.adaptive_entropy(H, dataclasses.replace(BATCH, entropy_coefficient=jnp.full((1, 3), 0.5))),
        -0.5 * (0.5 * 0.5 + 0.25 * 1.0),
    ),
    "side": (lambda: aggregation.side(np.array([[[0.5, 1.0], [0.5, -1.0]]]), np.ones((1, 2, 2), bool)), [[1, -1]]),
    "straight_through": (lambda: jax.grad(penalty.straight_through(penalty.k3))(2.0), 2.0),  # k2's
    "k1": (lambda: penalty.k1(jnp.float32(-0.5)), -0.5),
    "k2": (lambda: penalty.k2(jnp.float32(-0.5)), 0.125),
    "k3": (lambda: penalty.k3(jnp.float32(-LOG(2))), 1 - LOG(2)),
    "kl": (lambda: penalty.kl(LOGP, BATCH), 0.5 * (LOG(2) - 0.5) + 0.25 * (1 - LOG(2))),
    "kl_corrected": (  # r = 2 and ½, k3 as above
        lambda: penalty.kl_corrected(LOGP, BATCH),
        2 * 0.5 * (LOG(2) - 0.5) + 0.5 * 0.25 * (1 - LOG(2)),
    ),
    "top_entropy": (lambda: penalty.top_entropy(H, BATCH.mask, share=0.5), [[False, True, False]]),
    "importance_weighted": (  # |a| = log 2 twice: w = 3/2 and 5/4
        lambda: distillation.importance_weighted(BATCH.old_logp, LOGP, BATCH.mask),
        [[1.5 * LOG(2), -1.25 * LOG(2), 0]],
    ),
    "optimal_advantage": (  # V* = ½ log((e² + 1)/2)
        lambda: regression.optimal_advantage(
            jnp.ones((1, 1)), jnp.ones((1, 1, 1), bool), reference_rewards=jnp.array([[1.0, 0.0]])
        ),
        [[[1 - 0.5 * LOG((np.exp(2) + 1) / 2)]]],
    ),
    "solvable": (lambda: regression.solvable(jnp.array([[0.0, 1.0], [0.0, -1.0]])), [True, False]),
    "a2po": (  # s = log 2 − log 2
        lambda: regression.a2po(LOGP, BATCH, beta=2.0),
        0.5 * 1 + 0.25 * 1,
    ),
    "quadratic": (lambda: penalty.quadratic(LOGP, BATCH), 0.75 * LOG(2) ** 2 / 2),
    "entropy_bonus": (lambda: penalty.entropy_bonus(H, BATCH), -(0.5 * 0.5 + 0.25 * 1.0)),
    "exact_kl": (lambda: penalty.exact_kl(H, BATCH), 0.5 * 0.5 + 0.25 * 1.0),
    "ordinary": (
        lambda: distillation.ordinary(jnp.array([True, True, False]), jnp.array([4, 1, 4]), (0, 1)),
        [1, 0, 0],
    ),
    "value_loss": (  # near: .2 and .2, so ½·max(.25, .64), ½·max(0, .64)
        lambda: penalty.value_loss(H, BATCH, returns=jnp.ones((1, 3)), old_values=jnp.zeros((1, 3)), limit=0.2),
        0.5 * 0.32 + 0.25 * 0.32,
    ),
    "covariance": (lambda: penalty.covariance(LOGP, BATCH), [[LOG(2) / 2, LOG(2) / 2, 0]]),
    "kl_cov": (lambda: penalty.kl_cov(LOGP, BATCH, share=0.5), 0.5 * LOG(2)),  # the first of two equal values
    "clip_cov": (
        lambda: penalty.clip_cov(LOGP, BATCH, ratio.token, jax.random.key(0), low=0.3, high=0.4, share=1.0),
        [[False, False, True]],
    ),
    "confident_negatives": (lambda: penalty.confident_negatives(H, BATCH, threshold=0.7), [[True, False, True]]),
    "sampled_token": (lambda: distillation.sampled_token(BATCH.old_logp, LOGP, BATCH.mask), [[LOG(2), -LOG(2), 0]]),
    "teachers": (lambda: distillation.teachers(jnp.array([[3, 1]])).valid, [[True, True]]),
    "students": (lambda: distillation.students(jnp.array([[3, 1]])).ids, [[3, 1]]),
    "intersection": (lambda: distillation.intersection(*jnp.array([[[3, 1]], [[1, 2]]])).valid, [[False, True]]),
    "union": (lambda: distillation.union(*jnp.array([[[3, 1]], [[1, 2]]])).valid, [[True, True, False, True]]),
    "support_kl": (  # π̂ = ½, ½ and q̂ = ¾, ¼
        lambda: distillation.support_kl(
            jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]])), distillation.teachers(jnp.array([[0, 1]]))
        ),
        [0.5 * LOG(4 / 3)],
    ),
    "support_loss": (
        lambda: distillation.support_loss(
            jnp.zeros((1, 2)),
            jnp.log(jnp.array([[3.0, 1.0]])),
            jnp.array([2.0]),
            support=distillation.teachers(jnp.array([[0, 1]])),
        ),
        LOG(4 / 3),
    ),
    "top_tokens": (
        lambda: distillation.top_tokens(jnp.ones((1, 1)), jnp.array([[1.0], [3.0], [2.0]]), k=2)[0],
        [[1, 2]],
    ),
    "logits_at": (
        lambda: distillation.logits_at(jnp.ones((1, 1)) * 2, jnp.array([[1.0], [3.0]]), jnp.array([[1]])),
        [[6.0]],
    ),
    "informative": (lambda: rewards.informative(np.array([[1, 0], [1, 1]]), np.ones((2, 2, 1), bool)), [True, False]),
    "overlong_penalty": (lambda: rewards.overlong_penalty(jnp.array([85]), max_length=100, buffer=20), [-0.25]),
    "length_shaping": (  # lengths 1 and 3: z = ∓1/√2
        lambda: rewards.length_shaping(jnp.ones((1, 2)), np.arange(3) < np.array([[[1], [3]]]), share=1.0, alpha=0.4),
        [[1 - 0.4 / (1 + np.exp(0.5**0.5)), 1 - 0.4 / (1 + np.exp(-(0.5**0.5)))]],
    ),
    "improvement": (
        lambda: rewards.improvement(jnp.ones((1, 2)), np.ones((1, 2, 1), bool), jnp.array([0.0, 1.0])),
        0.5**0.5,
    ),
    "permute_within_group": (lambda: rewards.permute_within_group(jnp.full((1, 3), 7), jax.random.key(0)), [[7, 7, 7]]),
    "policy_sums": (lambda: metrics.policy_sums(LOGP, BATCH, ratio.token)["k3"], (1 - LOG(2)) + (LOG(2) - 0.5)),
    "policy_summary": (
        lambda: metrics.policy_summary(metrics.policy_sums(LOGP, BATCH, ratio.token))["effective_samples"],
        2.5**2 / 2 / 4.25,
    ),
    "position_sums": (lambda: metrics.position_sums(LOGP, BATCH, ratio.token, edges=(1,))["weight"], [0.5, 0.25]),
    "position_summary": (
        lambda: metrics.position_summary(metrics.position_sums(LOGP, BATCH, ratio.token, edges=(1,)))["drift"],
        [LOG(2), 0],
    ),
    "reward_summary": (lambda: metrics.reward_summary(R, M)["length"], 5 / 3),
    "sign_length_gap": (lambda: metrics.sign_length_gap(np.where(M, R[..., None] - 0.25, 0), M), -0.5),
    "variance_proxies": (  # Ā²W = 1·2, 0, ¼·1 over three
        lambda: metrics.variance_proxies(np.where(M, R[..., None], 0), M, proxy=PROXY, gradient_norm=0.5)["total"],
        0.75,
    ),
}


def numbers(actual, expected):
    """Compares numbers; None matches any value."""
    for a, e in zip(np.ravel(actual), [x for x in np.ravel(np.array(expected, object))], strict=True):
        assert e is None or a == e or abs(a - e) <= 4e-6 * max(1, abs(e)), (actual, expected)


def test_every_public_function_has_a_worked_number():
    written = {
        name.split(",")[0] for table in (RATIOS, ADVANTAGES, AGGREGATIONS, CORRECTIONS, OTHERS) for name in table
    }
    modules = (ratio, advantage, aggregation, correction, penalty, distillation, rewards, regression, metrics)
    public = {name for m in modules for name in m.__all__ if inspect.isfunction(getattr(m, name))}
    assert public <= written


@together
def ratios(arguments):
    return {name: RATIOS[name][0](*given)[0] for name, given in arguments.items()}


@pytest.mark.parametrize("name", RATIOS)
def test_ratios(name):
    found = ratios({name: (np.array(L), A, mask) for name, (_, A, mask, _) in RATIOS.items()})
    numbers(found[name], RATIOS[name][-1])


@together
def advantages(rewards, mask):
    return {name: f(rewards, mask) for name, (f, _) in ADVANTAGES.items()}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(name):
    numbers(advantages(R, M)[name], ADVANTAGES[name][1])


@together
def weights(mask, sign):
    return {name: f(mask, sign)[0, :, 0] for name, (f, _) in AGGREGATIONS.items()}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregations(name):
    numbers(weights(M, np.array([[1, -1, -1]]))[name], AGGREGATIONS[name][1])


@together
def corrections(mismatch, mask):
    return {name: f(mismatch, mask) for name, (f, _) in CORRECTIONS.items()}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrections(name):
    numbers(corrections(RHO, TWO)[name], CORRECTIONS[name][1])


@together
def others():
    return {name: f() for name, (f, _) in OTHERS.items()}


@pytest.mark.parametrize("name", OTHERS)
def test_penalties_rewards_and_metrics(name):
    numbers(others()[name], OTHERS[name][1])
