"""What a run computes with, fixed from its first step to its last: mesh, model, data, and keys by purpose."""

import dataclasses
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from rljax.models import Model
from rljax.tasks import TaskData
from rljax.training.config import Config
from rljax.training.mesh import check_divides, make_mesh

_PURPOSES = ("initialise", "rollout", "rewards", "watch", "evaluate")


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
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    data = config.task.load()
    model = Model(dataclasses.replace(config.model, vocab_size=data.tokenizer.vocab_size))
    return Setting(mesh, model, data)
