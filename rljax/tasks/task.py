"""What a task is to the trainer: problems, a tokenizer, and a reward for the text of a completion."""

import abc
import dataclasses
from collections.abc import Callable
from pathlib import Path

from rljax.tasks.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt with its answer, a worked solution in text where there is one, and the level it is reported under."""

    prompt: str
    answer: str
    solution: str = ""
    level: str = ""


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task, loaded; the same in every process of a job.

    `reward(prompt, completion, answer) -> float` and `right_chain(prompt, completion) -> bool` read text, the
    completion without its EOS. `right_chain` says whether the way to the answer is the asked one; None where the task
    knows no such thing.
    """

    tokenizer: Tokenizer
    demonstrations: list[Problem]
    prompts: list[Problem]
    held_out: dict[str, list[Problem]]
    reward: Callable[[str, str, str], float]
    right_chain: Callable[[str, str], bool] | None = None


class Task(abc.ABC):
    """A recipe's `task`: a frozen dataclass of settings, and `load`."""

    @abc.abstractmethod
    def load(self) -> TaskData:
        """Prepares what is not prepared yet, and reads it; the same settings give the same data, always."""


def as_paths(task: Task, *fields: str) -> None:
    """Makes a `Path` of each of a frozen task's fields that a recipe gave as a string."""
    for field in fields:
        value = getattr(task, field)
        if isinstance(value, str):
            object.__setattr__(task, field, Path(value))
