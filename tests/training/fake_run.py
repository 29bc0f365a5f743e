"""Artificial data of a run for the tests of the report."""

import numpy as np

from rljax import algorithms
from rljax.tasks.strings.problems import LEVELS
from rljax.training.description import describe
from rljax.training.evaluation.intervals import mean_interval, pass_at_k, reward_interval, wilson_interval

BEFORE, AFTER = (0.99, 0.24, 0.22, 0.10, 0.057, 0.02), (0.97, 0.72, 0.55, 0.17, 0.092, 0.03)

CONFIG = {
    "type": "Config", "run": "runs/strings", "seed": 3, "steps": 240,
    "task": {"type": "StringsTask", "demonstrated": 60, "folder": "data"},
    "algorithm": describe(algorithms.ctpo()),
    "optimizer": {"type": "OptimizerConfig", "learning_rate": 1.5e-4, "clip_norm": 1.0},
    "evaluation": {"type": "EvaluationConfig", "every": 20, "watch_problems": 256},
}  # fmt: skip
VERSIONS = {"rljax-llm": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"}
DEVICE = "1 × cpu (cpu), 1 process(es), 2 cores on this host"


def metrics(likelihood_steps: int, rollouts: int) -> list[dict]:
    draw = np.random.default_rng(0)
    rows: list[dict] = []
    for n in range(likelihood_steps):
        fall = np.exp(-6 * n / max(likelihood_steps, 1))
        rows.append({
            "phase": "likelihood", "step": n, "loss": 2.4 * fall + 0.02 + 0.02 * draw.random(),
            "confident": 1 - 0.9 * fall - 0.03 * draw.random(), "grad_norm": 0.3 + 2 * fall + 0.2 * draw.random(),
            "tokens_per_second": 23000 + 900 * draw.normal(), "seconds": 0.13,
        })  # fmt: skip
    for n in range(rollouts + 1):
        rise = 1 - np.exp(-2.5 * n / max(rollouts, 1))
        if n % 20 == 0:
            accuracy = {level: float(np.clip(b + (a - b) * rise / 0.92 + 0.02 * draw.normal(), 0, 1))
                        for level, b, a in zip(LEVELS[:4], BEFORE, AFTER, strict=False)}  # fmt: skip
            reward = {level: 0.8 * share - 0.1 for level, share in accuracy.items()}
            rows.append({"phase": "eval", "step": n, "accuracy": accuracy, "reward": reward, "kl_start": 0.2 * rise})
        if n < rollouts:
            rows.append({
                "phase": "rl", "step": n, "reward": 0.33 + 0.45 * rise + 0.04 * draw.normal(), "reward_std": 0.45,
                "informative": 0.6 - 0.2 * rise + 0.05 * draw.normal(),
                "entropy": 0.31 - 0.2 * rise + 0.01 * draw.normal(), "kl": 0.0008 + 0.0002 * draw.normal(),
                "grad_norm": 0.4 + 0.1 * draw.normal() ** 2,
                "clip_share": 0.01 + 0.004 * draw.random(), "length": 13.1 + 0.4 * draw.normal(), "loss": -0.01,
                "finished": 0.985 + 0.01 * draw.random(), "tokens_per_second": 17500.0, "seconds": 0.66,
                "seconds_sampling": 0.38 + 0.02 * draw.normal(), "seconds_verification": 0.03 + 0.002 * draw.normal(),
                "seconds_learning": 0.25 + 0.02 * draw.normal(), "peak_memory_gib": 1.2 + 0.002 * n,
                "solved": 0.3 + 0.45 * rise,
            })  # fmt: skip
    return rows


def evaluation(rates) -> dict:
    """Evaluation figures per level at the given rates of solved samples: 256 problems, 8 samples each."""
    draw = np.random.default_rng(1)
    figures = {}
    for level, rate in zip(LEVELS, rates, strict=True):
        solved = draw.binomial(8, draw.beta(2 * rate, 2 * (1 - rate), size=256))
        figures[level] = {
            "problems": 256, "samples": 8, "pass@1": mean_interval(pass_at_k(8, solved, 1)),
            "pass@8": mean_interval(pass_at_k(8, solved, 8)), "greedy": wilson_interval(int(256 * rate), 256),
            "best constant": wilson_interval(30, 256), "strategy": "always 'a b'",
            "reward": reward_interval(0.8 * solved / 8 - 0.1), "right chain": mean_interval(0.9 * solved / 8),
        }  # fmt: skip
    return figures


def samples(right: int) -> list[dict]:
    """Twelve completions: the first `right` are correct, one is empty, one has a reward of 0.5."""
    drawn = [
        {"prompt": f"f{i} f{2 * i % 25} a b c d ;", "completion": f"f{2 * i % 25} d c b a ; f{i} a d c b",
         "level": LEVELS[i % 2], "answer": "a d c b" if i < right else "b c d a", "reward": float(i < right),
         "solved": i < right}
        for i in range(12)
    ]  # fmt: skip
    drawn[-1] |= {"completion": "", "answer": "d d c"}
    drawn[-2] |= {"reward": 0.5}
    return drawn


def everything() -> dict:
    return {
        "config": CONFIG, "versions": VERSIONS, "device": DEVICE, "metrics": metrics(1200, 240),
        "evaluations": {"before RL": evaluation(BEFORE), "after RL": evaluation(AFTER)},
        "samples": {"start": samples(3), "end": samples(8)}, "status": "finished",
        "headline": "level 2 held-out pairs",
    }  # fmt: skip
