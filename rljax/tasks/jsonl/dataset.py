"""Any local jsonl as a TensorFlow Datasets builder; a file that changes is another dataset."""

import dataclasses
import hashlib
from pathlib import Path

import tensorflow_datasets as tfds

from rljax.tasks.jsonl.reader import read_jsonl
from rljax.tasks.storage import examples, problem_info


@dataclasses.dataclass
class JsonlConfig(tfds.core.BuilderConfig):
    """The file; its content names the folder."""

    path: Path = Path()

    @classmethod
    def of(cls, path: Path) -> "JsonlConfig":
        return cls(name=hashlib.sha256(path.read_bytes()).hexdigest()[:16], path=path)


class JsonlProblems(tfds.core.GeneratorBasedBuilder):
    """One split, `train`: the file's problems in their order."""

    builder_config: JsonlConfig
    VERSION = tfds.core.Version("1.1.0")  # another one if the stored fields change

    def _info(self) -> tfds.core.DatasetInfo:
        return problem_info(self, "Problems of a local jsonl file.")

    def _split_generators(self, dl_manager):
        return {"train": examples(read_jsonl(self.builder_config.path))}

    def _generate_examples(self):
        raise NotImplementedError("_split_generators gives the examples themselves")
