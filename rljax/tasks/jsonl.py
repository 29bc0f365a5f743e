"""Any local jsonl as a task: one `{"prompt": …, "answer": …}` a line, and a reward function."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path

from rljax.tasks.task import Problem, Task, TaskData, as_paths
from rljax.tasks.tokenizer import Tokenizer
from rljax.tasks.verifier import exact_match


def read_jsonl(path: Path) -> list[Problem]:
    """The problems of a file of `{"prompt", "answer"}` lines, `solution` and `level` optional, other fields ignored.

    Raises ValueError that names the file, the line's number and what is wrong with it.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"path = {str(path)!r}: expected a readable jsonl file ({error.strerror})") from error
    if not lines[-1]:
        del lines[-1]  # the last line ends in a newline, too
    if not lines:
        raise ValueError(f"{path} is empty: expected one JSON object with a prompt and an answer in each line")
    return [_read_line(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _read_line(place: str, line: bytes) -> Problem:
    if not line.strip():
        raise ValueError(f"{place} is empty: remove it, or write a JSON object with a prompt and an answer")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 (byte {error.start + 1}): expected a JSON object in UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}): {line[:60].decode(errors='replace')!r}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: expected an object with a prompt and an answer")
    if missing := [name for name in ("prompt", "answer") if name not in row]:
        raise ValueError(f"{place} has no {' and no '.join(missing)}: its fields are {', '.join(row) or 'none'}")
    fields = {field.name: row[field.name] for field in dataclasses.fields(Problem) if field.name in row}
    for name, value in fields.items():
        _check_text(f"{place}: {name}", value)
    if not fields["prompt"]:
        raise ValueError(f"{place}: prompt = '': expected at least one character")
    return Problem(**fields)


def _check_text(name: str, value) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: expected a string, in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} = {value!r}: a lone surrogate at {error.start} is no Unicode text") from error


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
    """File of {"prompt", "answer"} objects, one a line; optional "solution" and "level"."""
    _: dataclasses.KW_ONLY
    reward: Callable[[str, str, str], float] = exact_match
    """(prompt, completion, answer) -> float."""
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
        if not 0 <= self.held_out_share < 1:
            raise ValueError(f"task.held_out_share = {self.held_out_share}: expected a number in [0, 1)")

    def load(self) -> TaskData:
        """Prepares the dataset where the file is new or has changed, then reads it."""
        from rljax.tasks import jsonl_dataset, prepared  # here, so that a recipe is read without tensorflow_datasets

        read_jsonl(self.path)  # a bad line is reported as it is
        config = jsonl_dataset.JsonlConfig.of(self.path)
        builder = prepared.prepare(jsonl_dataset.JsonlProblems, config, self.data_dir)
        problems = prepared.read(builder, "train")
        training, held_out = split_problems(problems, self.held_out_share, self.seed)
        return TaskData(
            tokenizer=self._tokenizer(problems),
            demonstrations=[problem for problem in training if problem.solution],
            prompts=training,
            held_out={"held out": held_out} if held_out else {},
            reward=self.reward,
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
