"""TensorFlow Datasets builder for questions of reasoning-gym."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version

import tensorflow_datasets as tfds

from rljax.tasks.gym.generator import Request, generate
from rljax.tasks.storage import examples, problem_info
from rljax.tasks.task import Problem


@dataclasses.dataclass
class GymConfig(tfds.core.BuilderConfig):
    """Configuration of one set of questions; a hash of the requests and of reasoning-gym's version names the folder."""

    requests: tuple[Request, ...] = ()

    @classmethod
    def of(cls, requests: Sequence[Request]) -> "GymConfig":
        content = json.dumps([version("reasoning-gym"), requests], sort_keys=True)
        return cls(name=hashlib.sha256(content.encode()).hexdigest()[:16], requests=tuple(requests))


class GymQuestions(tfds.core.GeneratorBasedBuilder):
    """Dataset with one split per category: its distinct questions; `info` holds the encoded entry."""

    builder_config: GymConfig
    VERSION = tfds.core.Version("1.0.0")  # increase if the generation or the stored fields change

    def _info(self) -> tfds.core.DatasetInfo:
        return problem_info(self, "Questions of reasoning-gym.")

    def _split_generators(self, dl_manager):
        requests = self.builder_config.requests
        found = generate(requests)
        for request, entries in zip(requests, found, strict=True):
            if len(entries) < request.count:
                raise ValueError(f"task: {request.name} has too few distinct questions: expected {request.count} for "
                                 f"prompts, problems, demonstrations and shots, found {len(entries)}; ask for fewer or "
                                 "change the settings of the category")  # fmt: skip
        return {
            request.name: examples([_problem(request.name, entry) for entry in entries])
            for request, entries in zip(requests, found, strict=True)
        }

    def _generate_examples(self):
        raise NotImplementedError("unused: _split_generators returns the examples")


def _problem(name: str, entry: dict) -> Problem:
    answer = entry["answer"]
    return Problem(entry["question"].strip(), "" if answer is None else str(answer), level=name, info=entry)
