"""Held-out problems, measured: pass@1, pass@k, greedy accuracy and the task's checks, each with its 95 % interval."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rljax._checks import check
from rljax.rollout import SamplingConfig
from rljax.tasks import Problem
from rljax.tasks.batching import encode_prompts
from rljax.training.collect import draw, repeated
from rljax.training.components import Components
from rljax.training.config import Config
from rljax.training.evaluation.intervals import mean_interval, pass_at_k, wilson_interval
from rljax.training.validation import evaluation_shape


class Evaluator:
    """Samples completions of held-out problems and scores them."""

    def __init__(self, config: Config, parts: Components):
        self.config, self.parts, self.data = config, parts, parts.data
        unknown = set(config.evaluation.watch) - set(parts.data.held_out)
        check(not unknown, "evaluation.watch", config.evaluation.watch, f"levels among {list(parts.data.held_out)}")

    def scores(self, params, problems: Sequence[Problem], samples: int, key, *, greedy: bool = False):
        """(solved, checks): `[problems, samples]` booleans, and for each of the task's checks the same by its name."""
        settings = self.config.evaluation
        length, budget = evaluation_shape(self.config.rollout, self.data, problems)
        sampling = SamplingConfig(max_new_tokens=budget, temperature=0.0 if greedy else settings.temperature)
        rows = repeated(encode_prompts(problems, self.data.tokenizer, length), samples)
        asked = [problem for problem in problems for _ in range(samples)]
        rewards, texts = [], []
        for start in range(0, len(asked), settings.batch):
            chosen = np.minimum(np.arange(start, start + settings.batch), len(asked) - 1)  # one compiled shape
            batch = {name: array[chosen] for name, array in rows.items()}
            present = asked[start : start + settings.batch]
            drawn = draw(self.parts, sampling, params, batch, present, jax.random.fold_in(key, start))
            rewards.append(drawn.rewards)
            texts += drawn.texts
        shape = (len(problems), samples)
        solved = np.array([self.data.solved(float(reward)) for reward in np.concatenate(rewards)], bool)
        checks = {
            name: np.reshape([holds(p.prompt, text) for p, text in zip(asked, texts, strict=True)], shape)
            for name, holds in self.data.checks.items()
        }
        return solved.reshape(shape), checks

    def watch(self, params, key) -> dict[str, float]:
        """Share solved by level, from one sample per problem: a cheap look during training."""
        settings = self.config.evaluation
        levels = settings.watch or tuple(self.data.held_out)
        watched = {level: self.data.held_out[level][: settings.watch_problems] for level in levels}
        return {level: float(self.scores(params, problems, 1, key)[0].mean()) for level, problems in watched.items()}

    def evaluate(self, params, key) -> dict[str, dict]:
        """Every level's figures, `[value, low, high]` each."""
        return dict(self.levels(params, key))

    def levels(self, params, key) -> Iterator[tuple[str, dict]]:
        """`evaluate`, level by level."""
        for level, problems in self.data.held_out.items():
            if problems:
                yield level, self._level(params, problems, key)

    def _level(self, params, problems: Sequence[Problem], key) -> dict:
        settings = self.config.evaluation
        problems, k = problems[: settings.problems], settings.samples
        solved, checks = self.scores(params, problems, k, key)
        greedy, _ = self.scores(params, problems, 1, key, greedy=True)
        right = solved.sum(axis=1)
        return {
            "problems": len(problems),
            "samples": k,
            "pass@1": mean_interval(pass_at_k(k, right, 1)),
            f"pass@{k}": mean_interval(pass_at_k(k, right, k)),
            "greedy": wilson_interval(int(greedy.sum()), len(problems)),
            **{name: mean_interval(held.mean(axis=1)) for name, held in checks.items()},
        }
