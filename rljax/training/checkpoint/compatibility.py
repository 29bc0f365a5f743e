"""Checks that a checkpoint belongs to this code, task and model, and reading of parameters under those checks."""

import base64
import hashlib
from pathlib import Path

import jax

from rljax.models import Params
from rljax.tasks import TaskData
from rljax.training.checkpoint.checkpoints import Checkpoints, Restored
from rljax.training.errors import RunError

VERSION = 1
"""Of the records and trees of checkpoints: another number where they changed."""


def require_same_version(record: dict, where: str) -> None:
    """Raises RunError if the run in `where` was saved by a rljax whose checkpoints are others."""
    if record.get("version") != VERSION:
        raise RunError(f"{where} was saved by another version of rljax (its checkpoints have version "
                       f"{record.get('version')}, expected {VERSION}): go on with that one, or start another run with "
                       "--run FOLDER")  # fmt: skip


def encode_data(data: TaskData) -> dict:
    """The tokenizer, whole, and a digest of the problems trained on."""
    problems = repr((data.demonstrations, data.prompts)).encode()
    return {
        "tokenizer": base64.b64encode(data.tokenizer.model_proto).decode(),
        "problems": hashlib.sha256(problems).hexdigest(),
    }


def require_same_tokenizer(record: dict, data: TaskData, where: str) -> None:
    """Raises RunError if the parameters in `where` were trained with another tokenizer than the task's."""
    if base64.b64decode(record["task"]["tokenizer"]) != data.tokenizer.model_proto:
        raise RunError(
            f"{where} was trained with another tokenizer: the task's text has changed since. Give the task "
            "as it was, or start another run with --run FOLDER"
        )


def encode_shapes(params) -> dict[str, list[int]]:
    """The shape of every parameter by its path, for the record."""
    return {jax.tree_util.keystr(path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def require_same_shapes(record: dict, params, where: str) -> None:
    """Raises RunError, naming the first that differ, if the parameters in `where` are another model's."""
    theirs, ours = record["shapes"], encode_shapes(params)
    different = [
        f"{name} is {theirs.get(name, 'absent')}, not {ours.get(name, 'expected')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise RunError(
            f"{where} holds another model: {'; '.join(different[:3])}. Give the fields of `model` that it was "
            "trained with, or start another run with --run FOLDER"
        )


def require_same_data(record: dict, data: TaskData, where: str) -> None:
    """Raises RunError if the run in `where` was trained with another tokenizer or on other problems."""
    require_same_tokenizer(record, data, where)
    if record["task"]["problems"] != encode_data(data)["problems"]:
        raise RunError(
            f"{where} was trained on other problems: the task's data have changed since. Give the task "
            "as it was, or start another run with --run FOLDER"
        )


def read_params(folder: Path, abstract: Params, data: TaskData, where: str) -> Restored | None:
    """The newest parameters in a folder of checkpoints that can be read, and their record; None if there are none.

    Raises RunError if they are another model's or another tokenizer's than those of `abstract` and `data`.
    """

    def target(record: dict) -> Params:
        require_same_tokenizer(record, data, where)
        require_same_shapes(record, abstract, where)
        return abstract

    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore_params(target, print)
    checkpoints.close()
    return restored
