"""Evaluation on held-out problems: pass@k, greedy accuracy, best constant strategy, mean reward and checks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from rljax._checks import check
from rljax.rollout import SamplingConfig
from rljax.tasks import Problem
from rljax.tasks.baselines import best_baseline
from rljax.training.collect import draw
from rljax.training.components import Components
from rljax.training.config import Config
from rljax.training.errors import RunError
from rljax.training.evaluation.intervals import (
    CONSTANT,
    REWARD,
    STRATEGY,
    mean_interval,
    pass_at_k,
    reward_interval,
    wilson_interval,
)


class Scores(NamedTuple):
    """Scores of completions, in arrays [problems, samples]."""

    rewards: np.ndarray
    """Rewards from the task's reward function, float32."""
    solved: np.ndarray
    """The task's `solved` of the rewards, bool."""
    checks: dict[str, np.ndarray]
    """Results of the task's checks by name, bool."""


class Look(NamedTuple):
    """Result of a quick evaluation during training, per level."""

    accuracy: dict[str, float]
    """Share of the problems that are solved."""
    reward: dict[str, float]
    """Mean reward."""


class Evaluator:
    """Samples completions of held-out problems and scores them."""

    def __init__(self, config: Config, parts: Components):
        self.config, self.parts, self.data = config, parts, parts.data
        unknown = set(config.evaluation.watch) - set(parts.data.held_out)
        check(not unknown, "evaluation.watch", config.evaluation.watch, f"levels among {list(parts.data.held_out)}")
        own = {"problems", "samples", "pass@1", f"pass@{config.evaluation.samples}", "greedy", CONSTANT, STRATEGY,
               REWARD}  # fmt: skip
        check(not own & set(parts.data.checks), "checks", list(parts.data.checks), f"names other than {sorted(own)}")

    def scores(self, params, problems: Sequence[Problem], samples: int, key, *, greedy: bool = False) -> Scores:
        """Scores `samples` sampled or, with `greedy`, greedy completions per problem.

        Raises RunError unless the rewards are finite numbers, and the results of `solved` and the checks are bools.
        """
        settings = self.config.evaluation
        encoded, budget = self.parts.held_out.rows(problems)
        sampling = SamplingConfig(max_new_tokens=budget, temperature=0.0 if greedy else settings.temperature)
        share = math.gcd(settings.batch, samples)  # completions per forward pass over a prompt
        asked = np.repeat(np.arange(len(problems)), samples // share)
        size = min(settings.batch // share, self._fewest(len(asked), share))  # one compiled shape per level
        rewards, texts = [], []
        for start in range(0, len(asked), size):
            chosen = asked[np.minimum(np.arange(start, start + size), len(asked) - 1)]
            batch = {name: array[chosen] for name, array in encoded.items()}
            present = [problems[i] for i in asked[start : start + size]]
            drawn = draw(self.parts, sampling, params, batch, present, jax.random.fold_in(key, start * share),
                         completions=share)  # fmt: skip
            rewards.append(drawn.rewards)
            texts += drawn.texts
        shape = (len(problems), samples)
        earned = np.concatenate(rewards)
        solved = [_truth("solved", self.data.solved, float(reward)) for reward in earned]
        checks = {
            name: np.reshape([_truth(name, holds, problems[i // samples].prompt, text)
                              for i, text in enumerate(texts)], shape)
            for name, holds in self.data.checks.items()
        }  # fmt: skip
        return Scores(earned.reshape(shape), np.reshape(solved, shape), checks)

    def _fewest(self, prompts: int, completions: int) -> int:
        """The smallest number of prompts, at least `prompts`, whose completions the row shards divide."""
        shards = self.parts.model.rules.row_shards(self.parts.mesh)
        step = shards // math.gcd(shards, completions)
        return -(-prompts // step) * step

    def watch(self, params, key) -> Look:
        """Quick evaluation of the watched levels, with one sample per problem."""
        settings = self.config.evaluation
        levels = [level for level in settings.watch or self.data.held_out if self.data.held_out[level]]
        watched = {level: self.data.held_out[level][: settings.watch_problems] for level in levels}
        scores = {level: self.scores(params, problems, 1, key) for level, problems in watched.items()}
        return Look(
            accuracy={level: float(found.solved.mean()) for level, found in scores.items()},
            reward={level: float(found.rewards.mean(dtype=np.float64)) for level, found in scores.items()},
        )

    def evaluate(self, params, key) -> dict[str, dict]:
        """Full evaluation: the figures of every level, each [value, low, high] with a 95 % interval."""
        return dict(self.levels(params, key))

    def levels(self, params, key) -> Iterator[tuple[str, dict]]:
        """Yields the results of `evaluate` level by level."""
        for level, problems in self.data.held_out.items():
            if problems:
                yield level, self._level(params, level, key)

    @functools.cached_property
    def constants(self) -> dict[str, dict]:
        """Accuracy and name of each level's best constant strategy; no entries if the task has none."""
        return {level: self._constant(level) for level in self.data.held_out}

    def _constant(self, level: str) -> dict:
        problems = self._problems(level)
        best = best_baseline(dataclasses.replace(self.data, held_out={**self.data.held_out, level: problems}), level)
        if best is None:
            return {}
        return {CONSTANT: wilson_interval(round(best.accuracy * len(problems)), len(problems)), STRATEGY: best.name}

    def _problems(self, level: str) -> Sequence[Problem]:
        """The problems of a full evaluation."""
        return self.data.held_out[level][: self.config.evaluation.problems]

    def _level(self, params, level: str, key) -> dict:
        problems, k = self._problems(level), self.config.evaluation.samples
        rewards, solved, checks = self.scores(params, problems, k, key)
        greedy = self.scores(params, problems, 1, key, greedy=True).solved
        right = solved.sum(axis=1)
        return {
            "problems": len(problems),
            "samples": k,
            "pass@1": mean_interval(pass_at_k(k, right, 1)),
            f"pass@{k}": mean_interval(pass_at_k(k, right, k)),
            "greedy": wilson_interval(int(greedy.sum()), len(problems)),
            **self.constants[level],
            REWARD: reward_interval(rewards.mean(axis=1, dtype=np.float64)),
            **{name: mean_interval(held.mean(axis=1)) for name, held in checks.items()},
        }


def _truth(name: str, function: Callable, *arguments: str | float) -> bool:
    answer = function(*arguments)
    if not isinstance(answer, bool | np.bool_):
        raise RunError(f"{name}({', '.join(map(repr, arguments))}) = {answer!r}: expected True or False")
    return bool(answer)
