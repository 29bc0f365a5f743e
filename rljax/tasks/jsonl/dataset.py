"""TensorFlow Datasets builder for a local jsonl file; a changed file becomes a new dataset."""

import dataclasses
import hashlib
from pathlib import Path

import tensorflow_datasets as tfds

from rljax.tasks.jsonl.reader import read_jsonl
from rljax.tasks.storage import examples, problem_info


@dataclasses.dataclass
class JsonlConfig(tfds.core.BuilderConfig):
    """Configuration of one file; the hash of its content names the dataset folder."""

    path: Path = Path()

    @classmethod
    def of(cls, path: Path) -> "JsonlConfig":
        return cls(name=hashlib.sha256(path.read_bytes()).hexdigest()[:16], path=path)


class JsonlProblems(tfds.core.GeneratorBasedBuilder):
    """Dataset with one split, `train`: the problems in file order."""

    builder_config: JsonlConfig
    VERSION = tfds.core.Version("1.2.0")  # increase if the stored fields change

    def _info(self) -> tfds.core.DatasetInfo:
        return problem_info(self, "Problems of a local jsonl file.")

    def _split_generators(self, dl_manager):
        return {"train": examples(read_jsonl(self.builder_config.path))}

    def _generate_examples(self):
        raise NotImplementedError("unused: _split_generators returns the examples")
