"""The task interface of the trainer: problems, a tokenizer and a reward for the text of a completion."""

import abc
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rljax._checks import check
from rljax._expression import name_of
from rljax.objective import required_fields
from rljax.text import Message, TextTokenizer


@dataclasses.dataclass(frozen=True)
class Problem:
    """A prompt with its answer and optional data."""

    prompt: str
    """Text that the model completes."""
    answer: str
    """Reference answer, passed to the reward function."""
    solution: str = ""
    """Text of a demonstration; empty if the problem has none."""
    level: str = ""
    """Level under which the problem is reported."""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Further data for the reward function, as JSON values by name."""
    messages: tuple[Message, ...] = dataclasses.field(default=(), hash=False)
    """The prompt as a chat, to which the model adds the assistant's next message. If it is empty, the model completes
    `prompt`; otherwise `prompt` is only passed to the reward function and shown in reports."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """The same as `info`: for a generated problem, the generator's entry."""
        return self.info


def full_reward(reward: float) -> bool:
    return reward >= 1


@dataclasses.dataclass(frozen=True)
class TaskData:
    """The data of a loaded task, identical in every process of a job.

    Raises ValueError if `stop_ids` is empty or `headline` is not a level of `held_out`.
    """

    tokenizer: TextTokenizer
    """Converts text to token ids and back."""
    demonstrations: list[Problem]
    """Problems with solutions, used in stage 1."""
    prompts: list[Problem]
    """Problems used in stage 2."""
    held_out: Mapping[str, list[Problem]]
    """Problems used in evaluations, by level."""
    reward: Callable[..., float]
    """`reward(prompt, completion, answer) -> float`, where `completion` is text without the stop token.

    The function is also called for completions that were cut off at their token budget. It may have the keyword-only
    parameters `finished` (False if the completion was cut off), `length` (tokens of the completion, including its stop
    token) and `info` (`Problem.info`)."""
    solved: Callable[[float], bool] = full_reward
    """`solved(reward) -> bool`: True if the reward means that the problem is solved, by default if it is 1 or more.
    Accuracy and pass@k count solved problems."""
    headline: str | None = None
    """The held-out level that a report shows first; by default, the first level of `held_out`."""
    checks: Mapping[str, Callable[[str, str], bool]] = dataclasses.field(default_factory=dict)
    """Further checks `check(prompt, completion) -> bool`, by name; an evaluation reports the share of True for each."""
    baselines: Mapping[str, Callable[[Problem], str]] = dataclasses.field(default_factory=dict)
    """Constant strategies by name, which answer a problem without a model; an evaluation reports the accuracy of the
    best of them. `rljax.tasks.baselines` has common ones."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, by default the tokenizer's; demonstrations end with the first of these tokens, or
    with the one that a chat template writes after a message."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that are never sampled: the tokenizer's PAD and BOS, unless they are among `stop_ids`."""
        ids = {self.tokenizer.pad_id, self.tokenizer.bos_id} - {None, *self.stop_ids}
        return tuple(sorted(i for i in ids if i is not None))

    def __post_init__(self):
        if self.headline is None and self.held_out:
            object.__setattr__(self, "headline", next(iter(self.held_out)))
        if not self.stop_ids:
            object.__setattr__(self, "stop_ids", self.tokenizer.stop_ids)
        check(len(self.stop_ids) > 0, "stop_ids", self.stop_ids, "at least one token, such as the tokenizer's EOS")
        check(not self.held_out or self.headline in self.held_out, "headline", self.headline,
              f"a held-out level, one of {list(self.held_out)}")  # fmt: skip


class Task(abc.ABC):
    """Base class of a recipe's `task`, a frozen dataclass of settings; `JsonlTask` reads problems from a file."""

    @abc.abstractmethod
    def load(self, *, tokenizer: TextTokenizer | None = None) -> TaskData:
        """Prepares the dataset if necessary and reads it. Equal settings must return equal data.

        `tokenizer` is the tokenizer of a pretrained model, which the task must use; a task that brings its own
        tokenizer may omit the parameter, but then cannot train a pretrained model.
        """


def as_paths(task: Task, *fields: str) -> None:
    for field in fields:
        value = getattr(task, field)
        if isinstance(value, str):
            object.__setattr__(task, field, Path(value))


def require_reward(reward: Callable) -> None:
    """Raises ValueError if a reward function requires a keyword argument that the trainer does not supply."""
    try:
        named = required_fields(reward)
    except ValueError:  # some functions written in C have no signature
        return
    if unknown := sorted(named - {"finished", "length", "info"}):
        raise ValueError(f"task.reward = {name_of(reward)}: requires {', '.join(map(repr, unknown))}, which is not "
                         "supplied: expected only finished, length or info; bind all other keywords")  # fmt: skip


def given(function: Callable, offered: dict[str, Any]) -> Callable:
    """Binds the entries of `offered` that are keyword-only parameters of `function` and not bound by a `partial`.

    >>> given(lambda text, *, length: (text, length), {"length": 3, "finished": True})("abc")
    ('abc', 3)
    """
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return functools.partial(function, **{name: offered[name] for name in _keyword_only(function) & offered.keys()
                                          if name not in bound})  # fmt: skip


def _keyword_only(function: Callable) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def require_task(value) -> Task:
    """Returns the value if it is a task, else raises ValueError with an example of a task."""
    if isinstance(value, Task):
        return value
    example = "JsonlTask(path='problems.jsonl')"
    if isinstance(value, str | Path):
        example = f"JsonlTask(path={str(value)!r})"
    elif isinstance(value, type) and issubclass(value, Task):
        example = f"{value.__name__}()"
    raise ValueError(f"task = {value!r}: expected a task, such as {example}")
