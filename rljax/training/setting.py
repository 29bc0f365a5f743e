"""What a run computes with, fixed from its first step to its last: mesh, model, data, and keys by purpose."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from rljax.models import Model
from rljax.tasks import Problem, TaskData
from rljax.training.config import Config, RolloutConfig, check
from rljax.training.mesh import check_divides, make_mesh

_PURPOSES = ("initialise", "rollout", "rewards", "watch", "evaluate", "greedy")


def purpose_key(key: jax.Array, purpose: str, step: int = 0) -> jax.Array:
    """A key of its own for each purpose and step, from the run's one key."""
    return jax.random.fold_in(jax.random.fold_in(key, _PURPOSES.index(purpose)), step)


class Setting(NamedTuple):
    """Mesh, model and data of a run."""

    mesh: Mesh
    model: Model
    data: TaskData


def make_setting(config: Config) -> Setting:
    """Loads the task and builds the model for its vocabulary; raises ValueError where the mesh does not divide."""
    check_groups(config)
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    data = config.task.load()
    check_lengths(config, data)
    critic = "values" in config.needs
    model = Model(dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size, value_head=critic))
    return Setting(mesh, model, data)


def check_groups(config: Config) -> None:
    """Raises ValueError where groups are chosen by a signal that the algorithm does not need."""
    own, chosen = config.needs & {"values", "greedy_rewards"}, config.rollout.train_groups
    check(not (own and chosen), "rollout.train_groups", chosen,
          f"0: the algorithm's baseline is not its group's (it needs {', '.join(sorted(own))})")  # fmt: skip


def check_lengths(config: Config, data: TaskData) -> None:
    """Raises ValueError, naming the field, where a problem is longer than the columns that are there for it."""
    encode, rollout, limit = data.tokenizer.encode, config.rollout, config.model.max_length
    longest = max((problem.prompt for problem in data.prompts), key=lambda prompt: len(encode(prompt)))
    check(len(encode(longest)) <= rollout.prompt_length, "rollout.prompt_length", rollout.prompt_length,
          f"at least the {len(encode(longest))} tokens of the prompt {longest!r}")  # fmt: skip
    for level, problems in data.held_out.items():
        columns, budget = evaluation_shape(rollout, data, problems)
        check(columns + budget <= limit, "model.max_length", limit,
              f"at least the {columns} + {budget} tokens that held-out {level!r} takes")  # fmt: skip


def evaluation_shape(rollout: RolloutConfig, data: TaskData, problems: Sequence[Problem]) -> tuple[int, int]:
    """(prompt columns, new tokens) for held-out problems: those of training, unless these are longer."""
    encode = data.tokenizer.encode
    prompt = max((len(encode(problem.prompt)) for problem in problems), default=0)
    solution = max((len(encode(problem.solution)) for problem in problems), default=0) + 2
    return max(rollout.prompt_length, prompt), max(rollout.sampling.max_new_tokens, solution)
