"""A task as the trainer sees it: problems, a tokenizer, and a reward for the text of a completion."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rljax._checks import check
from rljax._expression import name_of
from rljax.objective import required_fields
from rljax.tasks.tokenizer import BOS, EOS, PAD, Tokenizer


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt with its answer, a worked solution in text if there is one, the level it is reported under, and `info`:
    anything else that the reward function needs, as JSON values by name."""

    prompt: str
    answer: str
    solution: str = ""
    level: str = ""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


def full_reward(reward: float) -> bool:
    """True for a reward of 1 or more."""
    return reward >= 1


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task, loaded; the same in every process of a job."""

    tokenizer: Tokenizer
    demonstrations: list[Problem]
    """Problems with solutions, for stage 1."""
    prompts: list[Problem]
    """Problems of stage 2."""
    held_out: Mapping[str, list[Problem]]
    """Problems of the evaluation, by level."""
    reward: Callable[..., float]
    """`reward(prompt, completion, answer)`, from the completion's text without its stop token. It judges a completion
    that was cut at its budget, too. If it has keyword-only parameters of these names, it is given `finished` (False if
    the completion was cut), `length` (the completion's tokens, its stop token included) and `info` (the problem's)."""
    solved: Callable[[float], bool] = full_reward
    """Whether a reward means that the problem is solved, which pass@k, greedy accuracy and the looks during training
    count. By default it is a reward of 1 or more: give another function if the full reward is less than 1."""
    headline: str | None = None
    """The held-out level that a report leads with; by default the first."""
    checks: Mapping[str, Callable[[str, str], bool]] = dataclasses.field(default_factory=dict)
    """Further shares that an evaluation reports, by name: `check(prompt, completion)`, beside the reward."""
    stop_ids: tuple[int, ...] = (EOS,)
    """Tokens that end a completion; demonstrations end with the first of them."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that are never sampled: the tokenizer's PAD and BOS, unless they are among `stop_ids`."""
        ids = (getattr(self.tokenizer, "pad_id", PAD), getattr(self.tokenizer, "bos_id", BOS))  # -1: it has none
        return tuple(sorted({i for i in ids if i >= 0} - set(self.stop_ids)))

    def __post_init__(self):
        if self.headline is None and self.held_out:
            object.__setattr__(self, "headline", next(iter(self.held_out)))
        check(len(self.stop_ids) > 0, "stop_ids", self.stop_ids, "at least one token, such as the tokenizer's EOS")
        check(not self.held_out or self.headline in self.held_out, "headline", self.headline,
              f"a held-out level, one of {list(self.held_out)}")  # fmt: skip


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


def require_reward(reward: Callable) -> None:
    """Raises ValueError if a reward function requires a keyword that it is not given."""
    try:
        named = required_fields(reward)
    except ValueError:  # some functions of C have no signature
        return
    if unknown := sorted(named - {"finished", "length", "info"}):
        raise ValueError(f"task.reward = {name_of(reward)}: requires {', '.join(map(repr, unknown))}, which is not "
                         "supplied: expected finished, length or info, or a bound value")  # fmt: skip


def require_task(value) -> Task:
    """The value, if it is a task; raises ValueError, showing what to write, for anything else."""
    if isinstance(value, Task):
        return value
    example = "JsonlTask(path='problems.jsonl')"
    if isinstance(value, str | Path):
        example = f"JsonlTask(path={str(value)!r})"
    elif isinstance(value, type) and issubclass(value, Task):
        example = f"{value.__name__}()"
    raise ValueError(f"task = {value!r}: expected a task, such as {example}")
