"""The fixed parts of a run: mesh, model, task data and encoded prompts."""

import dataclasses
import inspect
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from rljax._checks import check
from rljax.models import Model, make_mesh
from rljax.tasks import Task, TaskData
from rljax.tasks.batching import left_padded, prompt_ids
from rljax.text import TextTokenizer, fits
from rljax.training.config import Config
from rljax.training.held_out import HeldOut, encode_held_out
from rljax.training.placement import to_devices
from rljax.training.validation import LeftOut, check_rows, fitting_held_out, fitting_prompts


class Components(NamedTuple):
    """Mesh, model, task data and encoded prompts of a run."""

    mesh: Mesh
    model: Model
    data: TaskData
    prompts: dict[str, np.ndarray]
    """Prompts of stage 2: `tokens` and `segment_ids` [R, L]; `index` in `data.prompts` and `task`, the level, [R]."""
    held_out: HeldOut
    """The encoded problems of `data.held_out`."""
    left_out: dict[str, LeftOut]
    """Prompts and held-out problems that are left out because they are too long."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens that are never sampled: those of the task, and rows of a pretrained table without a token."""
        return (*self.data.banned_ids, *range(self.data.tokenizer.vocab_size, self.model.vocab_size))

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
    tokenizer = data.tokenizer
    model = config.model.build(vocab_size=tokenizer.vocab_size, value_head="values" in config.needs,
                               rules=config.sharding)  # fmt: skip
    check(fits(tokenizer, model.vocab_size), "tokenizer.vocab_size", tokenizer.vocab_size,
          f"at most {model.vocab_size}, the vocabulary size of the model")  # fmt: skip
    prompts, left_out = _encoded_prompts(config, data)
    every = [problem for problems in data.held_out.values() for problem in problems]
    held_out = encode_held_out(every, tokenizer, config.rollout)
    largest = int(max(prompts["tokens"].max(), *map(max, held_out.prompts.values()), 0))
    check(largest < model.vocab_size, "prompts", largest, f"token ids below {model.vocab_size}, the vocabulary size of "
          "the model")  # fmt: skip
    fitting = fitting_held_out(config, held_out, data.held_out)
    limit = f"model.max_length = {config.model.max_length}"
    left_out |= {
        f"held-out problems of {level!r}": LeftOut(len(problems) - len(fitting[level]), len(problems), limit)
        for level, problems in data.held_out.items()
    }
    return Components(mesh, model, dataclasses.replace(data, held_out=fitting), prompts, held_out, left_out)


def _encoded_prompts(config: Config, data: TaskData) -> tuple[dict[str, np.ndarray], dict[str, LeftOut]]:
    """The field `prompts` of `Components`, and the number of prompts that are too long."""
    length = config.rollout.prompt_length
    ids = [prompt_ids(problem, data.tokenizer) for problem in data.prompts]
    index = fitting_prompts(config, [len(tokens) for tokens in ids], data.prompts)
    levels = sorted({problem.level for problem in data.prompts})
    prompts = {
        **left_padded([ids[i] for i in index], length),
        "index": np.array(index, np.int32),
        "task": np.array([levels.index(data.prompts[i].level) for i in index], np.int32),
    }
    count = len(data.prompts) - len(index)
    return prompts, {"prompts": LeftOut(count, len(data.prompts), f"rollout.prompt_length = {length}")}
