"""Task for a local jsonl file with one `{"prompt": …, "answer": …}` object per line."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from rljax._checks import check
from rljax.tasks.jsonl.reader import read_jsonl
from rljax.tasks.task import Problem, Task, TaskData, as_paths, full_reward, require_reward
from rljax.tasks.verifier import exact_match
from rljax.text import TextTokenizer, Tokenizer


def split_problems(problems: list[Problem], share: float, seed: int) -> tuple[list[Problem], list[Problem]]:
    """(training, held out) problems: holds out a random share of the distinct prompts, at least one unless share is 0.

    Raises ValueError if no training prompt is left.
    """
    distinct = list(dict.fromkeys(map(_asked, problems)))
    count = max(1, round(share * len(distinct))) if share else 0
    if count >= len(distinct):
        raise ValueError(f"held_out_share = {share}: expected a share of the {len(distinct)} distinct prompts that "
                         "leaves one for training; add prompts or lower the share (0 holds out none)")  # fmt: skip
    rng = random.Random(f"held out {seed}")
    chosen = set(sorted(distinct, key=lambda _: rng.random())[:count])
    return [p for p in problems if _asked(p) not in chosen], [p for p in problems if _asked(p) in chosen]


def _asked(problem: Problem) -> str:
    """The whole prompt: of a chat, all its messages."""
    return json.dumps(problem.messages, sort_keys=True) if problem.messages else problem.prompt


@dataclasses.dataclass(frozen=True)
class JsonlTask(Task):
    """Task for problems in a local jsonl file; the problems with a `solution` are the demonstrations.

    For generated problems or several held-out levels, subclass `Task`. Raises ValueError if a field is out of range,
    and TypeError if `reward` or `solved` is not callable.
    """

    path: Path
    """File with one JSON object per line: "prompt", "answer", and optionally "solution" and "level". All other fields
    become `Problem.info`. A "prompt" is a string, or a list of chat messages such as
    `{"role": "user", "content": "1 + 2?"}` for a pretrained model whose tokenizer has a chat template."""
    _: dataclasses.KW_ONLY
    reward: Callable[..., float] = exact_match
    """Reward function `(prompt, completion, answer) -> float`, optionally with keywords (see `TaskData.reward`)."""
    solved: Callable[[float], bool] = full_reward
    """`solved(reward) -> bool`: True if the reward means that the problem is solved; by default, if it is 1 or more."""
    held_out_share: float = 0.1
    """Share of the distinct prompts held out from training; 0 <= held_out_share < 1."""
    tokenizer: Path | None = None
    """File of a SentencePiece model from `Tokenizer.train`; by default, a model is trained on the text of `path`. A
    pretrained model has its own tokenizer, and this field must be None."""
    vocab_size: int = 1024
    """Upper bound on the number of tokens of the trained tokenizer; unused if no tokenizer is trained."""
    seed: int = 0
    """Seed of the held-out split, independent of the seed of the run."""
    data_dir: Path = Path("data")
    """Folder for prepared datasets."""

    def __post_init__(self):
        as_paths(self, "path", "tokenizer", "data_dir")
        if not callable(self.reward):
            raise TypeError(f"task.reward = {self.reward!r}: expected a function (prompt, completion, answer) -> float")
        require_reward(self.reward)
        if not callable(self.solved):
            raise TypeError(f"task.solved = {self.solved!r}: expected a function (reward) -> bool")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"task.held_out_share = {self.held_out_share}: expected a number in [0, 1)")

    def load(self, *, tokenizer: TextTokenizer | None = None) -> TaskData:
        check(tokenizer is None or self.tokenizer is None, "task.tokenizer", str(self.tokenizer),
              "None, since the pretrained model has its own tokenizer")  # fmt: skip
        from rljax.tasks import storage  # imported here so that recipes do not need tensorflow_datasets
        from rljax.tasks.jsonl import dataset

        read_jsonl(self.path)  # checked first, so that an invalid line raises its own error
        config = dataset.JsonlConfig.of(self.path)
        builder = storage.prepare(dataset.JsonlProblems, config, self.data_dir)
        problems = storage.read(builder, "train")
        training, held_out = split_problems(problems, self.held_out_share, self.seed)
        return TaskData(
            tokenizer=tokenizer or self._tokenizer(problems),
            demonstrations=[problem for problem in training if problem.solution],
            prompts=training,
            held_out={"held out": held_out} if held_out else {},
            reward=self.reward,
            solved=self.solved,
        )

    def _tokenizer(self, problems: list[Problem]) -> Tokenizer:
        if any(problem.messages for problem in problems):
            raise ValueError(f"{self.path}: a prompt is a chat: expected a pretrained model, whose tokenizer has a "
                             "chat template, or prompts that are strings")  # fmt: skip
        if self.tokenizer is None:
            texts = (text for p in problems for text in (p.prompt, p.solution or p.answer))
            return Tokenizer.train(texts, vocab_size=self.vocab_size)
        try:
            return Tokenizer(self.tokenizer.read_bytes())
        except OSError as error:
            raise ValueError(f"task.tokenizer = {str(self.tokenizer)!r}: expected a readable SentencePiece model "
                             f"({error.strerror})") from error  # fmt: skip
