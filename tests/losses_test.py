"""Penalties, corrections, distillation, rewards and metrics: values and gradients of plain loops in float64."""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, correction, distillation, metrics, penalty, policy_loss, ratio, regression, rewards
from tests import papers, papers_losses
from tests.together import together

SEEDS = range(3)
CLIP = partial(ratio.clip, low=0.2, high=0.3)
ESTIMATORS = {
    "k1": (penalty.k1, papers_losses.k1),
    "k2": (penalty.k2, papers_losses.k2),
    "k3": (penalty.k3, papers_losses.k3),
    "straight_through": (penalty.straight_through(penalty.k3), papers_losses.straight_through(papers_losses.k3)),
    "straight_through k1 k3": (
        penalty.straight_through(penalty.k1, penalty.k3),
        papers_losses.straight_through(papers_losses.k1, papers_losses.k3),
    ),
}


def tokens(seed):
    """Arrays `[B, T]` by name: mixed signs of A, rows with holes, and an empty row."""
    rng = np.random.default_rng(seed)
    l, A, w, mask = papers.random_batch(seed)
    mask[4] = False
    old = rng.normal(size=mask.shape) - 2
    x = {"logp": old + l, "old_logp": old, "ref_logp": old + rng.normal(size=mask.shape), "w": w, "mask": mask}
    return x | {"A": A * rng.choice([-1, 1, 2], mask.shape), "v": rng.normal(size=mask.shape)}


def batch_of(x):
    return Batch(mask=x["mask"], old_logp=x["old_logp"], advantages=x["A"], weights=x["w"], ref_logp=x["ref_logp"])


def kl(name):
    ours, paper = ESTIMATORS[name]
    return (
        lambda y, x: penalty.kl(y, batch_of(x), estimator=ours),
        lambda x: papers_losses.kl(x["logp"], x["ref_logp"], x["w"], x["mask"], paper),
    )


PENALTIES = {name: kl(name) for name in ESTIMATORS} | {
    "quadratic": (
        lambda y, x: penalty.quadratic(y, batch_of(x)),
        lambda x: papers_losses.quadratic(x["logp"], x["old_logp"], x["w"], x["mask"]),
    ),
    "entropy_bonus": (
        lambda y, x: penalty.entropy_bonus(y, batch_of(x)),
        lambda x: papers_losses.entropy_bonus(x["logp"], x["w"], x["mask"]),
    ),
    "adaptive_entropy": (
        lambda y, x: penalty.adaptive_entropy(
            y, dataclasses.replace(batch_of(x), entropy_coefficient=0.5 + 0 * x["w"])
        ),
        lambda x: papers_losses.entropy_bonus(x["logp"], 0.5 * x["w"], x["mask"]),
    ),
    "exact_kl": (
        lambda y, x: penalty.exact_kl(y, batch_of(x)),
        lambda x: papers_losses.exact_kl(x["logp"], x["w"], x["mask"]),
    ),
    "kl_corrected": (
        lambda y, x: penalty.kl_corrected(y, batch_of(x)),
        lambda x: papers_losses.kl_corrected(x["logp"], x["ref_logp"], x["old_logp"], x["w"], x["mask"]),
    ),
    "a2po": (
        lambda y, x: regression.a2po(y, batch_of(x), beta=0.3),
        lambda x: papers_losses.a2po(x["logp"], x["ref_logp"], x["A"], x["w"], x["mask"], 0.3),
    ),
    "value_loss": (
        lambda y, x: penalty.value_loss(y, batch_of(x), returns=x["v"], old_values=x["old_logp"], limit=0.2),
        lambda x: papers_losses.value_loss(x["logp"], x["v"], x["old_logp"], x["w"], x["mask"], 0.2),
    ),
    "kl_cov": (
        lambda y, x: penalty.kl_cov(y, batch_of(x), share=0.2),
        lambda x: papers_losses.kl_cov(x["logp"], x["old_logp"], x["A"], x["w"], x["mask"], 0.2),
    ),
}
SELECTIONS = (
    "covariance",
    "confident_negatives",
    "clip_cov",
    "top_entropy",
)  # tested here or in penalty_test
ROWS = {"token_truncated": {}, "sequence_truncated": {}, "icepop": {}, "sequence_masked": {}}
KEPT = {"geometric": {"low": 0.9, "high": 1.1}, "k3": {"limit": 0.1}, "veto": {"least": 0.5}}


def functions(module):
    return {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}


def test_every_function_is_compared_with_a_formula():
    assert {name.split()[0] for name in PENALTIES} | {"kl", *SELECTIONS} == functions(penalty) | {"a2po"}
    elsewhere = {"batch_normalized", "report", "opsm", "weighted", "aggregation_of_kept", "advantage_of_kept"}
    assert {*ROWS, *KEPT, *elsewhere} == functions(correction)
    written = {name for name, _ in inspect.getmembers(papers_losses, inspect.isfunction)}
    chance = {"permute_within_group"}
    assert functions(rewards) - chance <= written
    assert {name for name in functions(metrics) if not name.endswith("_sums")} <= written


@together
def penalties(y, x):
    return {name: jax.value_and_grad(ours)(y, x) for name, (ours, _) in PENALTIES.items()}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_penalty_and_its_gradient_are_the_papers(name):
    with jax.enable_x64(True):
        for seed in SEEDS:
            x = tokens(seed)
            value, gradient = penalties(np.where(x["mask"], x["logp"], np.nan), x)[name]
            expected, slope = PENALTIES[name][1](x)
            assert papers.agree(value, expected)
            assert papers.agree(gradient, slope)
            assert not papers.agree(0 * gradient, slope)


def test_selections_are_the_papers():
    @jax.jit
    def selections(x):
        batch = batch_of(x)
        kept = penalty.confident_negatives(x["v"], batch, threshold=0.3)
        return penalty.covariance(x["logp"], batch), kept, penalty.top_entropy(x["v"], x["mask"], share=0.3)

    with jax.enable_x64(True):
        for seed in SEEDS:
            x = tokens(seed)
            covariance, kept, top = selections(x)
            assert papers.agree(covariance, papers_losses.covariance(x["logp"], x["A"], x["mask"]))
            dropped = ~papers_losses.confident_negatives(x["v"], x["A"], 0.3) & x["mask"]
            np.testing.assert_array_equal(kept, ~dropped)
            np.testing.assert_array_equal(top, papers_losses.top_entropy(x["v"], x["mask"], 0.3))
            assert 0 < np.sum(top) < x["mask"].sum()
            assert 0 < np.sum(~np.asarray(kept)) < kept.size


def mismatch(seed):
    x = tokens(seed)
    far = np.random.default_rng(seed).choice([0.05, 0.5, 2.0], (len(x["mask"]), 1))
    return np.where(x["mask"], (x["ref_logp"] - x["old_logp"]) * far, np.nan), x["mask"]


@together
def corrections(l, mask):
    return {name: getattr(correction, name)(l, mask, **hyper) for name, hyper in (ROWS | KEPT).items()}


@pytest.mark.parametrize("name", [*ROWS, *KEPT])
def test_a_correction_is_the_papers(name):
    hyper = (ROWS | KEPT)[name]
    seen = []
    with jax.enable_x64(True):
        for seed in SEEDS:
            l, mask = mismatch(seed)
            expected = np.zeros(mask.shape) if name in ROWS else np.ones(len(mask), bool)
            for b, m in enumerate(mask):
                if m.any():
                    expected[b, ..., *([m] * (name in ROWS))] = getattr(papers, name)(l[b, m], **hyper)
            assert papers.agree(corrections(l, mask)[name], expected)
            seen.append(expected)
    assert np.ptp(np.stack(seen).astype(float)) > 0.5


def test_normalized_weights_and_the_report_are_the_papers():
    @jax.jit
    def run(l, mask, kept):
        w = correction.token_truncated(l, mask)
        reports = [correction.report(l, mask, weights, kept) for weights in (None, w)]
        return w, correction.batch_normalized(w, mask), reports

    with jax.enable_x64(True):
        for seed in SEEDS:
            l, mask = mismatch(seed)
            kept = np.random.default_rng(seed).random(len(mask)) > 0.3
            w, normalized, reports = jax.device_get(run(l, mask, kept))
            assert papers.agree(normalized, papers_losses.batch_normalized(w, mask))
            for weights, about in zip((None, w), reports, strict=True):
                for name, value in papers_losses.correction_report(l, mask, kept, weights).items():
                    assert papers.agree(about[name], value), name


@jax.jit
def support_loss(student, teacher, weights, valid):
    def loss(student):
        support = distillation.Support(jnp.zeros(valid.shape, jnp.int32), valid)
        return distillation.support_loss(student, teacher, weights, support=support)

    return jax.value_and_grad(loss)(student)


@pytest.mark.parametrize("name", ["teachers", "students", "intersection", "union"])
def test_distillation_and_its_gradient_are_the_papers(name):
    with jax.enable_x64(True):
        choose = jax.jit(getattr(distillation, name))
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            own, other = (np.array([rng.permutation(9)[:4] for _ in range(6)], np.int32) for _ in range(2))
            one = name in ("teachers", "students")
            support = choose(own) if one else choose(own, other)
            combine = {"intersection": set.intersection, "union": set.union}.get(name, lambda a, _: a)
            for ids, ok, a, b in zip(*map(np.asarray, support), own, other, strict=True):
                assert sorted(ids[ok]) == sorted(combine({*a}, {*b}))
            valid = np.asarray(support.valid) & (np.arange(6) != 3)[:, None]
            student, teacher = rng.normal(size=(2, *valid.shape))
            weights = rng.uniform(0.5, 1.5, 6) * (np.arange(6) != 1)
            value, gradient = support_loss(*(np.where(valid, x, np.nan) for x in (student, teacher)), weights, valid)
            expected, slope = papers_losses.support_loss(student, teacher, weights, valid)
            assert papers.agree(value, expected)
            assert papers.agree(gradient, slope)
            assert not papers.agree(0 * gradient, slope)


def test_the_sampled_token_is_the_papers():
    sampled_token = jax.jit(distillation.sampled_token)
    weighted = jax.jit(partial(distillation.importance_weighted, gamma=0.7))
    for seed in SEEDS:
        x = tokens(seed)
        given = x["old_logp"], x["ref_logp"], x["mask"]
        with jax.enable_x64(True):
            A, A_weighted = sampled_token(*given), weighted(*given)
        assert papers.agree(A, papers_losses.sampled_token(*given))
        assert papers.agree(A_weighted, papers_losses.importance_weighted(*given, 0.7))
        assert not papers.agree(A, A_weighted, 0.1)


def test_transformed_rewards_are_the_papers():
    with jax.enable_x64(True):
        shaping = jax.jit(partial(rewards.length_shaping, share=0.5, alpha=0.3))
        informative, improvement = jax.jit(rewards.informative), jax.jit(rewards.improvement)
        penalty = jax.jit(partial(rewards.overlong_penalty, max_length=100, buffer=30))
        for seed in SEEDS:
            R, mask, _ = papers.random_rollouts(seed)
            right = (R > -0.3) * 1.0
            np.testing.assert_array_equal(informative(R, mask), papers_losses.informative(R, mask))
            assert papers.agree(shaping(right, mask), papers_losses.length_shaping(right, mask, 0.5, 0.3))
            history = np.random.default_rng(seed).normal(size=5)
            assert papers.agree(improvement(R, mask, history), papers_losses.improvement(R, mask, history))
            lengths = np.random.default_rng(seed).integers(0, 120, 7)
            assert papers.agree(
                penalty(lengths.astype(float)), [papers_losses.overlong_penalty(n, 100, 30) for n in lengths]
            )


def test_metrics_of_a_step_are_the_papers():
    edges = (1, 3, 6)

    @jax.jit
    def summaries(x):
        logp, batch = x["logp"], batch_of(x)
        whole = metrics.policy_summary(metrics.policy_sums(logp, batch, CLIP))
        by_position = metrics.position_summary(metrics.position_sums(logp, batch, CLIP, edges=edges))
        return whole, by_position, jax.grad(policy_loss)(logp, batch, CLIP)

    with jax.enable_x64(True):
        for seed in SEEDS:
            x = tokens(seed)
            named = [x[name] for name in ("logp", "old_logp", "A", "w", "mask")]
            whole, by_position, gradient = summaries(x)
            expected = papers_losses.policy_summary(*named, np.asarray(gradient))
            assert expected["clip_share_positive"] > 0
            for name, value in whole.items():
                assert papers.agree(value, expected[name]), name
            expected = papers_losses.position_summary(*named, np.asarray(gradient), edges)
            for name, value in by_position.items():
                assert papers.agree(value, expected[name], 1e-9), name  # the spread is a difference of squares


def test_metrics_of_a_rollout_are_the_papers():
    @jax.jit
    def summaries(R, A, mask, proxy):
        about = metrics.variance_proxies(A, mask, proxy=proxy, gradient_norm=0.3)
        return metrics.sign_length_gap(A, mask), about, metrics.reward_summary(R, mask)

    with jax.enable_x64(True):
        for seed in SEEDS:
            R, mask, proxy = papers.random_rollouts(seed)
            A = np.random.default_rng(seed).normal(size=mask.shape)
            gap, about, summary = summaries(R, A, mask, proxy)
            assert papers.agree(gap, papers_losses.sign_length_gap(A, mask))
            for name, value in papers_losses.variance_proxies(A, mask, proxy, 0.3).items():
                assert papers.agree(about[name], value), name
            for name, value in papers_losses.reward_summary(R, mask).items():
                assert papers.agree(summary[name], value), name
