"""Held-out problems, measured: pass@1, pass@k, greedy accuracy and right chains, each with its 95 % interval."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from rljax.rollout import SamplingConfig
from rljax.tasks import Problem
from rljax.tasks.reading import encode_prompts
from rljax.training.collect import completions, make_sampler, verify
from rljax.training.config import Config, check
from rljax.training.intervals import mean_interval, pass_at_k, wilson_interval
from rljax.training.setting import Setting, evaluation_shape


class Evaluator:
    """Samples completions of held-out problems and scores them; one per run, since it keeps what it compiled."""

    def __init__(self, config: Config, setting: Setting):
        self.config, self.data = config, setting.data
        self._setting, self._samplers = setting, {}
        unknown = set(config.evaluation.watch) - set(setting.data.held_out)
        check(not unknown, "evaluation.watch", config.evaluation.watch, f"levels among {list(setting.data.held_out)}")

    def _sampler(self, sampling: SamplingConfig):
        if sampling not in self._samplers:
            self._samplers[sampling] = make_sampler(self._setting.model, self._setting.mesh, sampling)
        return self._samplers[sampling]

    def scores(self, params, problems: Sequence[Problem], samples: int, key, *, greedy: bool = False):
        """(rewards, right chains), each `[problems, samples]`; chains are None where the task knows none."""
        prompt_length, budget = evaluation_shape(self.config.rollout, self.data, problems)
        temperature = 0.0 if greedy else self.config.evaluation.temperature
        sampler = self._sampler(SamplingConfig(max_new_tokens=budget, temperature=temperature))
        asked = [problem for problem in problems for _ in range(samples)]
        rewards, chains = [], []
        for start in range(0, len(asked), self.config.evaluation.batch):
            batch = asked[start : start + self.config.evaluation.batch]
            filled = batch + [batch[-1]] * (self.config.evaluation.batch - len(batch))  # one compiled shape
            rows = encode_prompts(filled, self.data.tokenizer, prompt_length)
            drawn = sampler(params, rows["tokens"], rows["segment_ids"], jax.random.fold_in(key, start))
            texts = completions(drawn, prompt_length, self.data)[: len(batch)]
            rewards.append(verify(batch, texts, drawn.finished, self.data))
            if self.data.right_chain:
                chains += [self.data.right_chain(p.prompt, text) for p, text in zip(batch, texts, strict=True)]
        shape = (len(problems), samples)
        return np.concatenate(rewards).reshape(shape), np.reshape(chains, shape) if chains else None

    def watch(self, params, key) -> dict[str, float]:
        """Share solved by level, from one sample a problem: a cheap look during training."""
        settings = self.config.evaluation
        levels = settings.watch or tuple(self.data.held_out)
        watched = {level: self.data.held_out[level][: settings.watch_problems] for level in levels}
        return {
            level: float((self.scores(params, problems, 1, key)[0] >= 1).mean()) for level, problems in watched.items()
        }

    def evaluate(self, params, key) -> dict[str, dict]:
        """Every level's figures, `[value, low, high]` each; a reward of 1 (or more) counts as solved."""
        return dict(self.levels(params, key))

    def levels(self, params, key) -> Iterator[tuple[str, dict]]:
        """`evaluate`, level by level."""
        for level, problems in self.data.held_out.items():
            if problems:
                yield level, self._level(params, problems, key)

    def _level(self, params, problems: Sequence[Problem], key) -> dict:
        settings = self.config.evaluation
        problems, k = problems[: settings.problems], settings.samples
        rewards, chains = self.scores(params, problems, k, key)
        solved = (rewards >= 1).sum(axis=1)
        greedy, _ = self.scores(params, problems, 1, key, greedy=True)
        figures = {
            "problems": len(problems),
            "samples": k,
            "pass@1": mean_interval(pass_at_k(k, solved, 1)),
            f"pass@{k}": mean_interval(pass_at_k(k, solved, k)),
            "greedy": wilson_interval(int((greedy >= 1).sum()), len(problems)),
        }
        return figures if chains is None else {**figures, "right chain": mean_interval(chains.mean(axis=1))}
