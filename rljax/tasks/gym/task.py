"""Task for questions of reasoning-gym, mixed by category and asked as chats."""

import dataclasses
import difflib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rljax._checks import check
from rljax.tasks.baselines import FUNCTIONS, Strategy, constants
from rljax.tasks.gym.generator import Request, decode_entry, make_dataset
from rljax.tasks.gym.scorer import EntryScore
from rljax.tasks.task import Problem, Task, TaskData, as_paths
from rljax.text import Message, TextTokenizer, Tokenizer

MIXED = "all"  # name of the held-out level that mixes the trained categories


def transcript(messages: Sequence[Message]) -> str:
    """A chat as plain text, for `ReasoningGymTask.as_text`: each message ends with a newline.

    >>> transcript([{"role": "user", "content": "1 + 2?"}])
    '1 + 2?\\n'
    """
    return "".join(f"{message['content']}\n" for message in messages)


def shares(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """`total` divided in proportion to the weights, by largest remainders.

    >>> shares(10, {"gcd": 2, "lcm": 1})
    {'gcd': 7, 'lcm': 3}
    """
    exact = {name: total * weight / sum(weights.values()) for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


@dataclasses.dataclass(frozen=True)
class ReasoningGymTask(Task):
    """Task for generated questions of reasoning-gym, which bring their own scorers (extra `gym`).

    Questions are deduplicated, shuffled within their category, and divided into few-shot examples, held-out problems,
    demonstrations and prompts without overlap. Each category is a held-out level; if several are trained, the first
    level, "all", has an equal number of problems of each, in turn. `Problem.meta` is the entry of reasoning-gym, and
    the reward is the score of its `score_answer`. Raises ValueError if a field is out of range.
    """

    categories: Mapping[str, float] | tuple[tuple[str, float], ...]
    """Weight of each category, by the names that reasoning-gym uses, such as `{"gcd": 1.0}`; stored as pairs. Prompts
    and demonstrations are divided in proportion to the weights."""
    _: dataclasses.KW_ONLY
    settings: Any = ()
    """Mapping from categories to the settings of their generators, such as `{"gcd": {"max_value": 20}}`; stored as
    pairs."""
    untrained: tuple[str, ...] = ()
    """Further categories, which are evaluated but never trained on."""
    prompts: int = 2000
    """Number of prompts for stage 2, in all."""
    problems: int = 128
    """Number of held-out problems per category."""
    demonstrations: int = 0
    """Number of demonstrations for stage 1, in all. Their solution is the answer of the entry."""
    shots: int = 0
    """Number of few-shot examples per category: questions with answers, as earlier turns of every chat."""
    system: str = ""
    """Text of the system message; if it is empty, the chat has none."""
    instruction: str = ""
    """Text after each question, on its own line."""
    as_text: Callable[[Sequence[Message]], str] | None = None
    """Writes a chat as plain text, for tokenizers without a chat template, such as `transcript`. If it is None, the
    tokenizer's chat template is used."""
    seed: int = 0
    """Seed of the data, independent of the seed of the run."""
    vocab_size: int = 1024
    """Upper bound on the number of tokens of the SentencePiece model that is trained on the questions if the model has
    no tokenizer."""
    data_dir: Path = Path("data")
    """Folder for prepared datasets."""

    def __post_init__(self):
        as_paths(self, "data_dir")
        settings = {name: tuple(_fixed(dict(given)).items()) for name, given in dict(self.settings).items()}
        untrained = tuple(self.untrained)
        object.__setattr__(self, "categories", tuple(dict(self.categories).items()))
        object.__setattr__(self, "settings", tuple(settings.items()))
        object.__setattr__(self, "untrained", untrained)
        weights = self._weights
        check(len(weights) > 0, "task.categories", weights, "at least one category")
        for name, weight in weights.items():
            check(0 < weight < float("inf"), f"task.categories[{name!r}]", weight, "a positive weight; `untrained` "
                  "names categories that are only evaluated")  # fmt: skip
        check(not set(untrained) & set(weights), "task.untrained", untrained, f"no category of {list(weights)}")
        check(len(set(untrained)) == len(untrained), "task.untrained", untrained, "different names")
        check(MIXED not in self._names, "task.categories", weights, f"no category {MIXED!r}")
        for name in settings:
            check(name in self._names, f"task.settings[{name!r}]", dict(settings[name]), f"one of {self._names}")
        for name, least in {"prompts": 1, "problems": 1, "demonstrations": 0, "shots": 0, "seed": 0}.items():
            check(getattr(self, name) >= least, f"task.{name}", getattr(self, name), f"{least} or more")

    @property
    def _weights(self) -> dict[str, float]:
        return dict(self.categories)

    @property
    def _names(self) -> list[str]:
        return [*self._weights, *self.untrained]

    def load(self, *, tokenizer: TextTokenizer | None = None) -> TaskData:
        check(tokenizer is not None or self.as_text is not None, "task.as_text", None,
              "a function such as rljax.tasks.gym.transcript, since the model has no tokenizer with a chat "
              "template")  # fmt: skip
        for name in self._names:
            argument = "task.untrained" if name in self.untrained else "task.categories"
            _check_category(argument, name, dict(dict(self.settings).get(name, ())))
        parts = {name: self._divided(name, problems) for name, problems in self._questions().items()}
        rng = random.Random(f"order {self.seed}")
        prompts = [problem for part in parts.values() for problem in part["prompts"]]
        demonstrations = [problem for part in parts.values() for problem in part["demonstrations"]]
        rng.shuffle(prompts)
        rng.shuffle(demonstrations)
        held_out = {name: part["problems"] for name, part in parts.items()}
        return TaskData(
            tokenizer=tokenizer or self._tokenizer([*demonstrations, *prompts]),
            demonstrations=demonstrations,
            prompts=prompts,
            held_out=self._levels(held_out),
            reward=EntryScore(self.settings),  # pyright: ignore[reportArgumentType]
            baselines={
                **{name: _of_question(function) for name, function in FUNCTIONS.items()},
                **constants([*prompts, *(p for name in self.untrained for p in held_out[name])]),
            },
        )

    def _counts(self) -> dict[str, dict[str, int]]:
        """Number of questions by category and use; the uses are in the order in which questions are taken."""
        prompts, demonstrations = (shares(total, self._weights) for total in (self.prompts, self.demonstrations))
        return {
            name: {"shots": self.shots, "problems": self.problems, "demonstrations": demonstrations.get(name, 0),
                   "prompts": prompts.get(name, 0)}
            for name in self._names
        }  # fmt: skip

    def _requests(self) -> list[Request]:
        """The questions to generate, per category. Their seeds are far apart, since entry i depends on seed + i."""
        settings = dict(self.settings)
        return [
            Request(name, dict(settings.get(name, ())), random.Random(f"{name} {self.seed}").randrange(2**31),
                    sum(counts.values()))
            for name, counts in self._counts().items()
        ]  # fmt: skip

    def _questions(self) -> dict[str, list[Problem]]:
        """The questions of each category, shuffled."""
        from rljax.tasks import storage  # imported here so that recipes do not need tensorflow_datasets
        from rljax.tasks.gym import dataset

        config = dataset.GymConfig.of(self._requests())
        builder = storage.prepare(dataset.GymQuestions, config, self.data_dir)
        found = {name: storage.read(builder, name) for name in self._names}
        for name, problems in found.items():  # common questions come first: an unshuffled split would be biased
            random.Random(f"split {name} {self.seed}").shuffle(problems)
        return {name: [dataclasses.replace(p, info=decode_entry(p.info)) for p in found[name]] for name in found}

    def _divided(self, name: str, problems: list[Problem]) -> dict[str, list[Problem]]:
        """Problems by use, with the few-shot examples in their prompts."""
        left, parts = iter(problems), {}
        for use, count in self._counts()[name].items():
            parts[use] = [next(left) for _ in range(count)]
        for use in ("shots", "demonstrations"):
            check(all(problem.answer for problem in parts[use]), f"task.{use}", getattr(self, use),
                  f"0, since reasoning-gym does not answer its questions of {name!r}")  # fmt: skip
        before = self._opening(parts["shots"])
        return {
            "problems": [self._asked(problem, before) for problem in parts["problems"]],
            "prompts": [self._asked(problem, before) for problem in parts["prompts"]],
            "demonstrations": [
                dataclasses.replace(self._asked(problem, before), solution=problem.answer)
                for problem in parts["demonstrations"]
            ],
        }

    def _opening(self, shots: list[Problem]) -> list[Message]:
        turns = [turn for p in shots for turn in (self._question(p), {"role": "assistant", "content": p.answer})]
        return [*([{"role": "system", "content": self.system}] if self.system else []), *turns]

    def _question(self, problem: Problem) -> Message:
        text = f"{problem.prompt}\n{self.instruction}" if self.instruction else problem.prompt
        return {"role": "user", "content": text}

    def _asked(self, problem: Problem, before: list[Message]) -> Problem:
        messages = (*before, self._question(problem))
        if self.as_text is None:
            return dataclasses.replace(problem, messages=messages)
        return dataclasses.replace(problem, prompt=self.as_text(messages))

    def _levels(self, categories: dict[str, list[Problem]]) -> dict[str, list[Problem]]:
        trained = [categories[name] for name in self._weights]
        if len(trained) == 1:
            return categories
        share = max(1, self.problems // len(trained))
        alternating = [problem for of_each in zip(*trained, strict=True) for problem in of_each]
        return {MIXED: alternating[: share * len(trained)], **categories}  # evaluations may take its first problems

    def _tokenizer(self, problems: list[Problem]) -> Tokenizer:
        return Tokenizer.train((text for p in problems for text in (p.prompt, p.answer)), vocab_size=self.vocab_size)


def _of_question(strategy: Strategy) -> Strategy:
    """The strategy for the question alone, since `Problem.prompt` holds the whole chat if it is written as text."""
    return lambda problem: strategy(dataclasses.replace(problem, prompt=problem.info["question"]))


def _fixed(value: Any) -> Any:
    """`value` with tuples instead of lists, so that the task is hashable and equal after a change by `replace`."""
    if isinstance(value, dict):
        return {key: _fixed(item) for key, item in value.items()}
    return tuple(map(_fixed, value)) if isinstance(value, list | tuple) else value


def _check_category(argument: str, name: str, settings: dict[str, Any]) -> None:
    """Raises ValueError if reasoning-gym is not installed, or has no such category or setting."""
    try:
        with warnings.catch_warnings(action="ignore"):  # a dependency of reasoning-gym has invalid comparisons
            from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(f"task: ReasoningGymTask needs the package reasoning-gym ({error}): "
                         "pip install 'rljax-llm[gym]'") from error  # fmt: skip
    near = ", ".join(map(repr, difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.5)))
    check(name in DATASETS, argument, name, f"a category of reasoning-gym{near and f', such as {near}'}")
    known = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for setting in settings:
        check(setting in known, f"task.settings[{name!r}]", setting, f"settings among {sorted(known)}")
    try:
        make_dataset(name, settings)
    except Exception as error:
        raise ValueError(f"task.settings[{name!r}] = {settings}: expected settings that reasoning-gym accepts "
                         f"({type(error).__name__}: {error})") from error  # fmt: skip
