"""The task of composing string functions: learned alone first, then composed for the outcome reward."""

import dataclasses
from itertools import islice
from pathlib import Path

from rljax.tasks.strings import problems, verifier
from rljax.tasks.strings.functions import FUNCTIONS, LETTERS
from rljax.tasks.task import Task, TaskData, as_paths
from rljax.tasks.tokenizer import Tokenizer


def string_tokenizer() -> Tokenizer:
    """One token for each function's name with its space, for each letter and for `;`; bytes for all else."""
    symbols = [*(f"{name} " for name in FUNCTIONS), *LETTERS, ";"]
    texts = (p.prompt + p.solution for p in islice(problems.demonstrations(0, 1000), 1000))
    return Tokenizer.train(texts, symbols=symbols, vocab_size=4 + 256 + len(symbols) + 1)  # and the space alone


@dataclasses.dataclass(frozen=True)
class StringsTask(Task):
    """25 string functions, alone and composed (2509.25123); what is held out is the same for every seed."""

    seed: int = 0
    """Seed of the data; the run's own seed does not change them."""
    data_dir: Path = Path("data")
    """Folder of prepared datasets."""
    demonstrations: int = 80_000
    """Problems with solutions for stage 1."""
    prompts: int = 20_000
    """Problems for stage 2."""
    problems: int = 1024
    """Problems of each evaluation level."""

    def __post_init__(self):
        as_paths(self, "data_dir")
        for name in ("demonstrations", "prompts", "problems"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} = {getattr(self, name)}: expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"task.seed = {self.seed}: expected 0 or more")

    def load(self) -> TaskData:
        """Prepares the dataset on first use, then reads it."""
        from rljax.tasks import storage  # here, so that a recipe is read without tensorflow_datasets
        from rljax.tasks.strings import dataset

        config = dataset.StringFunctionsConfig.of(
            seed=self.seed, demonstrations=self.demonstrations, prompts=self.prompts, problems=self.problems
        )
        builder = storage.prepare(dataset.StringFunctions, config, self.data_dir)
        levels = {level: storage.read(builder, dataset.split_name(level)) for level in problems.LEVELS}
        return TaskData(
            tokenizer=string_tokenizer(),
            demonstrations=storage.read(builder, "train"),
            prompts=storage.read(builder, "prompts"),
            held_out=levels,
            reward=verifier.last_output,
            headline="level 2 held-out pairs",
            checks={"right chain": verifier.right_chain},
        )
