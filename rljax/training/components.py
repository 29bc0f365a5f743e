"""The fixed parts of a run: mesh, model, task data and encoded prompts."""

import inspect
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rljax.models import Model, make_mesh
from rljax.tasks import Task, TaskData
from rljax.tasks.batching import encode_prompts
from rljax.text import TextTokenizer
from rljax.training.config import Config
from rljax.training.placement import to_devices
from rljax.training.validation import check_lengths, check_rows


class Components(NamedTuple):
    """Mesh, model, task data and encoded prompts of a run."""

    mesh: Mesh
    model: Model
    data: TaskData
    prompts: dict[str, np.ndarray]
    """Prompts of stage 2: `tokens` and `segment_ids` [R, L]; `index` in `data.prompts` and `task`, the level, [R]."""

    def rows_to_devices(self, tree):
        """Copies host arrays to the mesh, with the first axis sharded like the rows of a batch."""
        return to_devices(tree, self.mesh, P(self.model.rules.rows))

    def to_devices(self, tree):
        """Copies host arrays to the mesh, replicated on every device."""
        return to_devices(tree, self.mesh, P())


def _load(task: Task, tokenizer: TextTokenizer | None) -> TaskData:
    """The task's data, with the tokenizer of a pretrained model unless `tokenizer` is None."""
    if tokenizer is None:
        return task.load()
    if "tokenizer" not in inspect.signature(task.load).parameters:
        raise ValueError(f"task = {task!r}: expected a task whose `load` has the keyword-only parameter `tokenizer`, "
                         "since a pretrained model has its own tokenizer")  # fmt: skip
    data = task.load(tokenizer=tokenizer)
    if data.tokenizer is not tokenizer:
        raise ValueError(f"task = {task!r}: expected data with the tokenizer of the pretrained model, which `load` "
                         f"receives, found {data.tokenizer!r}")  # fmt: skip
    return data


def make_components(config: Config) -> Components:
    """Loads the task and builds the model; raises ValueError if the config does not fit the devices or the data."""
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    data = _load(config.task, config.model.tokenizer())
    prompts = encode_prompts(data.prompts, data.tokenizer, config.rollout.prompt_length, "rollout.prompt_length")
    check_lengths(config, data)
    levels = sorted({problem.level for problem in data.prompts})
    prompts["index"] = np.arange(len(data.prompts), dtype=np.int32)
    prompts["task"] = np.array([levels.index(problem.level) for problem in data.prompts], np.int32)
    model = config.model.build(vocab_size=data.tokenizer.vocab_size, value_head="values" in config.needs,
                               rules=config.sharding)  # fmt: skip
    return Components(mesh, model, data, prompts)
