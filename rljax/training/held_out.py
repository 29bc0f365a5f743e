"""Held-out problems of a run, encoded once for all of its evaluations."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rljax.tasks import Problem
from rljax.tasks.batching import Rows, left_padded, prompt_ids
from rljax.text import TextTokenizer
from rljax.training.config import RolloutConfig


class HeldOut(NamedTuple):
    """Encoded held-out problems; each prompt is encoded once, since a chat template takes about a millisecond."""

    rollout: RolloutConfig
    prompts: dict[Problem, list[int]]
    """Token ids of each prompt."""
    solutions: dict[Problem, int]
    """Tokens of each solution."""

    def shape(self, problems: Sequence[Problem]) -> tuple[int, int]:
        """(prompt columns, new tokens) for `problems`: the rollout's, or more if the problems are longer."""
        prompt = max((len(self.prompts[problem]) for problem in problems), default=0)
        solution = max((self.solutions[problem] for problem in problems), default=0) + 2
        return max(self.rollout.prompt_length, prompt), max(self.rollout.sampling.max_new_tokens, solution)

    def rows(self, problems: Sequence[Problem]) -> tuple[Rows, int]:
        """The prompts of `problems`, one per row, padded on the left; and the number of new tokens per completion."""
        columns, budget = self.shape(problems)
        return left_padded([self.prompts[problem] for problem in problems], columns), budget


def encode_held_out(problems: Iterable[Problem], tokenizer: TextTokenizer, rollout: RolloutConfig) -> HeldOut:
    distinct = dict.fromkeys(problems)
    prompts = {problem: prompt_ids(problem, tokenizer) for problem in distinct}
    return HeldOut(rollout, prompts, {problem: len(tokenizer.encode(problem.solution)) for problem in distinct})
