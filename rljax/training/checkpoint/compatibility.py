"""Checks that a checkpoint belongs to this code, task and model, and reading of parameters under those checks."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jax

from rljax.models import Params
from rljax.tasks import Problem, TaskData
from rljax.training.checkpoint.checkpoints import Checkpoints, Restored
from rljax.training.errors import RunError

VERSION = 2
"""Of the records, trees and digests of checkpoints: another number where they changed."""


def require_same_version(record: dict, where: str) -> None:
    """Raises RunError if the run in `where` was saved by a rljax whose checkpoints are others."""
    if record.get("version") != VERSION:
        raise RunError(f"{where} was saved by another version of rljax (its checkpoints have version "
                       f"{record.get('version')}, expected {VERSION}): go on with that one, or start another run with "
                       "--run FOLDER")  # fmt: skip


def encode_data(data: TaskData) -> dict:
    """The tokenizer, whole, the stop tokens, and a short digest of every problem, in their order."""
    held_out = ((level, problem) for level, problems in data.held_out.items() for problem in problems)
    return {
        "tokenizer": base64.b64encode(data.tokenizer.model_proto).decode(),
        "stop tokens": list(data.stop_ids),
        "demonstrations": _encode_problems(data.demonstrations),
        "prompts": _encode_problems(data.prompts),
        "held-out problems": _encode_problems(held_out),
    }


_CHARACTERS = 8  # of one problem's digest: 6 bytes in base64


def _encode_problems(problems: Iterable[Problem | tuple[str, Problem]]) -> str:
    digests = (hashlib.blake2b(repr(problem).encode(), digest_size=6).digest() for problem in problems)
    return base64.b64encode(b"".join(digests)).decode()


def _problem_changes(kind: str, theirs: str, ours: str) -> list[str]:
    """What differs between two lists of encoded problems, as at most one phrase."""
    if theirs == ours:
        return []
    old, new = (Counter(text[i : i + _CHARACTERS] for i in range(0, len(text), _CHARACTERS)) for text in (theirs, ours))
    added, gone, total = (new - old).total(), (old - new).total(), new.total()
    if not added and not gone:
        return [f"the {total} {kind} are in another order"]
    if added == gone:
        return [f"{added} of {total} {kind} differ from those of the run"]
    return [f"{total} {kind} instead of the run's {old.total()} ({added} are new, {gone} are gone)"]


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
    """Raises RunError, naming what changed, if the run in `where` was trained with other task data."""
    theirs, ours = record["task"], encode_data(data)
    kinds = ("prompts", "demonstrations", "held-out problems")
    changes = [change for kind in kinds for change in _problem_changes(kind, theirs[kind], ours[kind])]
    if theirs["stop tokens"] != ours["stop tokens"]:
        changes.append(f"the stop tokens are {ours['stop tokens']}, not {theirs['stop tokens']}")
    if theirs["tokenizer"] != ours["tokenizer"]:
        changes.append("the tokenizer differs")
    if changes:
        raise RunError(
            f"{where} was trained with other task data: {'; '.join(changes)}. Give the task as it was, or start "
            "another run with --run FOLDER"
        )


def read_params(folder: Path, abstract: Params, data: TaskData, where: str) -> Restored | None:
    """The newest parameters in a folder of checkpoints that can be read, and their record; None if there are none.

    Raises RunError if they are of another version of rljax, or another model's or another tokenizer's than those of
    `abstract` and `data`.
    """

    def target(record: dict) -> Params:
        require_same_version(record, where)
        require_same_tokenizer(record, data, where)
        require_same_shapes(record, abstract, where)
        return abstract

    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore_params(target, print)
    checkpoints.close()
    return restored
