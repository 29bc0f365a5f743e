"""Any local jsonl as a task: one `{"prompt": …, "answer": …}` a line, and a reward function."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

from rljax.tasks.jsonl.reader import read_jsonl
from rljax.tasks.task import Problem, Task, TaskData, as_paths, full_reward, require_reward
from rljax.tasks.tokenizer import Tokenizer
from rljax.tasks.verifier import exact_match


def split_problems(problems: list[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held out), a share of the distinct prompts drawn with the seed; equal prompts stay together.

    Raises ValueError where a share above 0 leaves nothing to train on.
    """
    distinct = list(dict.fromkeys(problem.prompt for problem in problems))
    count = max(1, round(share * len(distinct))) if share else 0
    if count >= len(distinct):
        raise ValueError(f"held_out_share = {share} of {len(distinct)} distinct prompts leaves none to train on: give "
                         "more prompts or a smaller share (0 holds none out)")  # fmt: skip
    rng = random.Random(f"held out {seed}")
    chosen = set(sorted(distinct, key=lambda _: rng.random())[:count])
    return [p for p in problems if p.prompt not in chosen], [p for p in problems if p.prompt in chosen]


@dataclasses.dataclass(frozen=True)
class JsonlTask(Task):
    """A jsonl file as a task: rows with a `solution` are demonstrations, and a share of the prompts is held out."""

    path: Path
    """File of {"prompt", "answer"} objects, one per line; optional "solution" and "level". Other fields are the
    problem's `info`."""
    _: dataclasses.KW_ONLY
    reward: Callable[..., float] = exact_match
    """(prompt, completion, answer) -> float; it may name `finished`, `length` and `info` (see `TaskData.reward`)."""
    solved: Callable[[float], bool] = full_reward
    """Whether a reward means that the problem is solved; by default a reward of 1 or more."""
    held_out_share: float = 0.1
    """Share of the distinct prompts that is never trained on."""
    tokenizer: Path | None = None
    """A SentencePiece model made by `Tokenizer.train`; by default one is trained on the file's text."""
    vocab_size: int = 1024
    """Upper bound of that model's vocabulary."""
    seed: int = 0
    """Seed of the split; the run's own seed does not change it."""
    data_dir: Path = Path("data")
    """Folder of prepared datasets."""

    def __post_init__(self):
        as_paths(self, "path", "tokenizer", "data_dir")
        if not callable(self.reward):
            raise TypeError(f"task.reward = {self.reward!r}: expected a function (prompt, completion, answer) -> float")
        require_reward(self.reward)
        if not callable(self.solved):
            raise TypeError(f"task.solved = {self.solved!r}: expected a function (reward) -> bool")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"task.held_out_share = {self.held_out_share}: expected a number in [0, 1)")

    def load(self) -> TaskData:
        """Prepares the dataset where the file is new or has changed, then reads it."""
        from rljax.tasks import storage  # here, so that a recipe is read without tensorflow_datasets
        from rljax.tasks.jsonl import dataset

        read_jsonl(self.path)  # a bad line is reported as it is
        config = dataset.JsonlConfig.of(self.path)
        builder = storage.prepare(dataset.JsonlProblems, config, self.data_dir)
        problems = storage.read(builder, "train")
        training, held_out = split_problems(problems, self.held_out_share, self.seed)
        return TaskData(
            tokenizer=self._tokenizer(problems),
            demonstrations=[problem for problem in training if problem.solution],
            prompts=training,
            held_out={"held out": held_out} if held_out else {},
            reward=self.reward,
            solved=self.solved,
        )

    def _tokenizer(self, problems: list[Problem]) -> Tokenizer:
        if self.tokenizer is None:
            texts = (text for p in problems for text in (p.prompt, p.solution or p.answer))
            return Tokenizer.train(texts, vocab_size=self.vocab_size)
        try:
            return Tokenizer(self.tokenizer.read_bytes())
        except OSError as error:
            raise ValueError(f"task.tokenizer = {str(self.tokenizer)!r}: expected a readable SentencePiece model "
                             f"({error.strerror})") from error  # fmt: skip
