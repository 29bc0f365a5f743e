"""Constant strategies: fixed answers and trivial functions of the question, whose accuracy a model has to exceed.

A model can learn such a strategy by RL and seem to solve a task. The functions copy one part of the question or apply
one operation to its numbers. Functions that rearrange words or letters, such as reversing or sorting them, are not
included, since they solve tasks that ask for exactly that.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rljax.tasks.task import Problem, TaskData, given

Strategy = Callable[[Problem], str]

_LIST = re.compile(r"-?\d+(?:, ?-?\d+)+")
_NUMBER = re.compile(r"(?<!\w)-\d+|\d+")  # the sign of a number, but not the operator of 4-1


def question(problem: Problem) -> str:
    """The last line of the question."""
    return problem.prompt.strip().splitlines()[-1] if problem.prompt.strip() else ""


def payload(problem: Problem) -> str:
    """The text after the last `: ` of the question's last line, up to the end of its sentence.

    >>> payload(Problem("Decrypt this text: MAHLX YKHF. Answer with the text alone.", ""))
    'MAHLX YKHF'
    """
    return re.split(r"[.?] (?=[A-Z])", question(problem).rpartition(": ")[2])[0].strip()


def opening(number: int) -> Strategy:
    """The strategy that answers with the first word of sentence `number`, counted from 1.

    The answer is empty if the prompt has fewer sentences.

    >>> opening(2)(Problem("Ann likes chess. Bob likes golf. Who likes chess?", "Ann"))
    'Bob'
    """

    def first_word(problem: Problem) -> str:
        sentences = re.split(r"[.?!:]\s+", problem.prompt.strip())
        return (sentences[number - 1].split() or [""])[0] if number <= len(sentences) else ""

    return first_word


def numbers(problem: Problem) -> list[int]:
    """The first comma-separated list of numbers in the prompt, or else the numbers of its first line with a number.

    >>> numbers(Problem("Calculate 23 using these numbers: 5, 18.", "")), numbers(Problem("4 - 1 =", ""))
    ([5, 18], [4, 1])
    >>> numbers(Problem("-5, -2, 6, ?", ""))
    [-5, -2, 6]
    """
    if found := _LIST.search(problem.prompt):
        return [int(text) for text in _NUMBER.findall(found[0])]
    line = next((line for line in problem.prompt.splitlines() if _NUMBER.search(line)), "")
    return [int(text) for text in _NUMBER.findall(line)]


def _of_numbers(operation: Callable[[list[int]], object]) -> Strategy:
    """The operation's result as text, empty if the question has no numbers."""
    return lambda problem: str(operation(found)) if (found := numbers(problem)) else ""


FUNCTIONS: Mapping[str, Strategy] = {
    "echo": payload,
    "last line": question,
    "first word": lambda problem: (payload(problem).split() or [""])[0].strip(",.?!"),
    "last word": lambda problem: (payload(problem).split() or [""])[-1].strip(",.?!"),
    **{f"first word of sentence {i}": opening(i) for i in range(1, 9)},
    "number of words": lambda problem: str(len(payload(problem).split())),
    "number of numbers": _of_numbers(len),
    "first number": _of_numbers(lambda x: x[0]),
    "last number": _of_numbers(lambda x: x[-1]),
    "largest number": _of_numbers(max),
    "smallest number": _of_numbers(min),
    "sum": _of_numbers(sum),
    "difference": _of_numbers(lambda x: x[0] - sum(x[1:])),
    "product": _of_numbers(math.prod),
    "a + b": _of_numbers(lambda x: " + ".join(map(str, x))),
    "a - b": _of_numbers(lambda x: " - ".join(map(str, x))),
    "b - a": _of_numbers(lambda x: " - ".join(map(str, reversed(x)))),
    "a * b": _of_numbers(lambda x: " * ".join(map(str, x))),
}
"""Functions of the prompt, by name; `a + b` writes the sum of all numbers without computing it."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """The strategy that always gives the same answer."""

    answer: str

    def __call__(self, problem: Problem) -> str:
        return self.answer


def constants(training: Iterable[Problem], count: int = 8) -> dict[str, Strategy]:
    """The `count` commonest answers of each level as strategies, by name."""
    answers: dict[str, collections.Counter] = {}
    for problem in training:
        answers.setdefault(problem.level, collections.Counter())[problem.answer] += 1
    common = [answer for counter in answers.values() for answer, _ in counter.most_common(count)]
    return {f"always {answer!r}": Constant(answer) for answer in common}


class Baseline(NamedTuple):
    """A constant strategy and its result."""

    name: str
    accuracy: float


def best_baseline(data: TaskData, level: str, training: int = 256) -> Baseline | None:
    """The best of the task's `baselines` for the held-out problems of `level`; None if the task has no baselines.

    The strategy is chosen on the first `training` prompts with the same `Problem.level` as the held-out problems, or on
    the held-out problems themselves if there are no such prompts. If the held-out problems have different levels, a
    strategy is chosen for each of these levels. The accuracy is that on the held-out problems.
    """
    if not data.baselines or not data.held_out[level]:
        return None
    asked: dict[str, list[Problem]] = {}
    for problem in data.held_out[level]:
        asked.setdefault(problem.level, []).append(problem)
    names, solved = {}, 0.0
    for kind, problems in asked.items():
        seen = [problem for problem in data.prompts if problem.level == kind][:training] or problems
        chosen = max(data.baselines, key=lambda name: _accuracy(data, data.baselines[name], seen))
        names[kind] = chosen
        solved += _accuracy(data, data.baselines[chosen], problems) * len(problems)
    by_kind = [f"{kind}: {name}" for kind, name in names.items()] if len(names) > 1 else list(names.values())
    return Baseline(", ".join(by_kind), solved / len(data.held_out[level]))


def _accuracy(data: TaskData, strategy: Strategy, problems: Sequence[Problem]) -> float:
    return sum(_solves(data, problem, strategy(problem)) for problem in problems) / len(problems)


def _solves(data: TaskData, problem: Problem, text: str) -> bool:
    offered = {"finished": True, "length": len(data.tokenizer.encode(text)) + 1, "info": problem.info}
    reward = given(data.reward, offered)(problem.prompt, text, problem.answer)
    return data.solved(sum(reward) if isinstance(reward, tuple | list) else reward)
