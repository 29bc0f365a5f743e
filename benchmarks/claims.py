"""The figures of docs/claims.md: `python -m benchmarks.claims`."""

import jax
import numpy as np

from rljax import advantage
from tests.claims.cumulative_ratio_test import (
    MOVES,
    RATIOS,
    advantages_of_policy,
    bias,
    make_problem,
    outcome_exceptions,
    sequence_kl,
    term_variances,
)
from tests.claims.position_clip_test import cumulative_log_ratios
from tests.claims.token_baseline_test import REWARDS, gradient_of_groups, share, true_group_gradient


def cumulative_ratio():
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


def token_baselines():
    with jax.enable_x64(True):
        for kind, rewards in REWARDS.items():
            g = true_group_gradient(rewards)
            for count in (2, 4, 8, 32):
                print(f"{kind} N = {count}:", end=" ")
                for f in ("mean_baseline", "leave_one_out", "optimal_token_baseline", "leave_one_out_token_baseline"):
                    mean, variance = gradient_of_groups(getattr(advantage, f), count, rewards)
                    scaled = share(mean, g)
                    print(f"{f} {scaled:.3f}, variance {variance:.4f}, /share² {variance / scaled**2:.4f}", end="; ")
                print()


def position_clip():
    l, at = cumulative_log_ratios(), np.array([16, 64, 256, 1024, 4096]) - 1
    flat = l[:, at].std(0) / np.sqrt(at + 1)
    print("spread/√t", np.round(flat, 4), "mean", np.round(l[:, at].mean(0), 3))
    print("below −2σ√t:", [f"{np.mean(l[:, t] < -2 * flat.mean() * np.sqrt(t + 1)):.3f}" for t in at])


if __name__ == "__main__":
    cumulative_ratio()
    token_baselines()
    position_clip()
