"""The string task: single functions from demonstrations in stage 1, compositions by RL in stage 2."""

import dataclasses
from itertools import islice
from pathlib import Path

from rljax.tasks.strings import problems, verifier
from rljax.tasks.strings.functions import FUNCTIONS, LETTERS
from rljax.tasks.task import Task, TaskData, as_paths
from rljax.text import TextTokenizer, Tokenizer


def string_tokenizer() -> Tokenizer:
    """Tokenizer with a token for each function name with its space, each letter and `;`; other text becomes bytes."""
    symbols = [*(f"{name} " for name in FUNCTIONS), *LETTERS, ";"]
    texts = (p.prompt + p.solution for p in islice(problems.demonstrations(0, 1000), 1000))
    return Tokenizer.train(texts, symbols=symbols, vocab_size=4 + 256 + len(symbols) + 1)  # + 1: the space


@dataclasses.dataclass(frozen=True)
class StringsTask(Task):
    """Single and composed string functions with verified answers (after 2509.25123).

    The held-out functions, pairs and strings are the same for every `seed`. Raises ValueError if a size is less than 1
    or `seed` is negative.
    """

    seed: int = 0
    """Seed of the data, independent of the seed of the run."""
    data_dir: Path = Path("data")
    """Folder for prepared datasets."""
    demonstrations: int = 80_000
    """Number of problems with solutions for stage 1."""
    prompts: int = 20_000
    """Number of problems for stage 2."""
    problems: int = 1024
    """Number of problems per evaluation level."""

    def __post_init__(self):
        as_paths(self, "data_dir")
        for name in ("demonstrations", "prompts", "problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} = {getattr(self, name)}: expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"task.seed = {self.seed}: expected 0 or more")

    def load(self, *, tokenizer: TextTokenizer | None = None) -> TaskData:
        from rljax.tasks import storage
        from rljax.tasks.strings import dataset

        config = dataset.StringFunctionsConfig.of(
            seed=self.seed, demonstrations=self.demonstrations, prompts=self.prompts, problems=self.problems
        )
        builder = storage.prepare(dataset.StringFunctions, config, self.data_dir)
        levels = {level: storage.read(builder, dataset.split_name(level)) for level in problems.LEVELS}
        return TaskData(
            tokenizer=tokenizer or string_tokenizer(),
            demonstrations=storage.read(builder, "train"),
            prompts=storage.read(builder, "prompts"),
            held_out=levels,
            reward=verifier.last_output,
            headline="level 2 held-out pairs",
            checks={"right chain": verifier.right_chain},
        )
