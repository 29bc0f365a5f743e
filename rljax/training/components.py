"""The fixed parts of a run: mesh, model, task data and encoded prompts."""

from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rljax.models import Model, make_mesh
from rljax.tasks import TaskData
from rljax.tasks.batching import encode_prompts
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


def make_components(config: Config) -> Components:
    """Loads the task and builds the model; raises ValueError if the config does not fit the devices or the data."""
    mesh = make_mesh(config.mesh)
    check_rows(config, mesh)
    data = config.task.load()
    prompts = encode_prompts(data.prompts, data.tokenizer, config.rollout.prompt_length, "rollout.prompt_length")
    check_lengths(config, data)
    levels = sorted({problem.level for problem in data.prompts})
    prompts["index"] = np.arange(len(data.prompts), dtype=np.int32)
    prompts["task"] = np.array([levels.index(problem.level) for problem in data.prompts], np.int32)
    model = config.model.build(vocab_size=data.tokenizer.vocab_size, value_head="values" in config.needs,
                               rules=config.sharding)  # fmt: skip
    return Components(mesh, model, data, prompts)
