"""TensorFlow Datasets builder of the string task."""

import dataclasses

import tensorflow_datasets as tfds

from rljax.tasks.storage import examples, problem_info
from rljax.tasks.strings import problems


@dataclasses.dataclass
class StringFunctionsConfig(tfds.core.BuilderConfig):
    """Seed and sizes, which also name the dataset folder."""

    seed: int = 0
    demonstrations: int = 0
    prompts: int = 0
    problems: int = 0

    @classmethod
    def of(cls, *, seed: int, demonstrations: int, prompts: int, problems: int) -> "StringFunctionsConfig":
        name = f"seed_{seed}-demonstrations_{demonstrations}-prompts_{prompts}-problems_{problems}"
        return cls(name=name, seed=seed, demonstrations=demonstrations, prompts=prompts, problems=problems)


def split_name(level: str) -> str:
    return level.replace(" ", "_").replace("-", "_")


class StringFunctions(tfds.core.GeneratorBasedBuilder):
    """Dataset with the splits `train` (demonstrations), `prompts`, and one split per evaluation level."""

    builder_config: StringFunctionsConfig
    VERSION = tfds.core.Version("1.3.0")  # increase if functions, splits, random draws or fields change

    def _info(self) -> tfds.core.DatasetInfo:
        return problem_info(self, "Compositions of 25 string functions, after arXiv 2509.25123.")

    def _split_generators(self, dl_manager):
        config = self.builder_config
        levels = {
            split_name(level): examples(problems.held_out(level, config.seed, config.problems))
            for level in problems.LEVELS
        }
        return {
            "train": examples(problems.demonstrations(config.seed, config.demonstrations)),
            "prompts": examples(problems.prompts(config.seed, config.prompts)),
            **levels,
        }

    def _generate_examples(self):
        raise NotImplementedError("unused: _split_generators returns the examples")
