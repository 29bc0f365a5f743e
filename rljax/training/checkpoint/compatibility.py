"""Checks that a checkpoint fits this version of rljax, the task and the model."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jax

from rljax.models import Params
from rljax.tasks import Problem, TaskData
from rljax.text import TextTokenizer
from rljax.training.checkpoint.checkpoints import Checkpoints, Restored
from rljax.training.errors import RunError

VERSION = 3
"""Version of the checkpoint format: records, trees and digests."""

TOKENIZER = "tokenizer"
"""Folder with the tokenizer's files, in the folder of the run."""


def require_same_version(record: dict, where: str) -> None:
    """Raises RunError if the checkpoints in `where` have another format version."""
    if record.get("version") != VERSION:
        raise RunError(f"{where} was saved by another version of rljax (its checkpoints have version "
                       f"{record.get('version')}, expected {VERSION}): resume with that version of rljax, or start "
                       "another run with --run FOLDER")  # fmt: skip


def encode_data(data: TaskData) -> dict:
    """The tokenizer's digest and folder, the stop tokens and a short digest of every problem, in order."""
    held_out = ((level, problem) for level, problems in data.held_out.items() for problem in problems)
    return {
        "tokenizer": {"sha256": data.tokenizer.digest, "path": TOKENIZER},
        "stop tokens": list(data.stop_ids),
        "demonstrations": _encode_problems(data.demonstrations),
        "prompts": _encode_problems(data.prompts),
        "held-out problems": _encode_problems(held_out),
    }


_CHARACTERS = 8  # per problem: a 6-byte digest in base64


def _encode_problems(problems: Iterable[Problem | tuple[str, Problem]]) -> str:
    digests = (hashlib.blake2b(repr(problem).encode(), digest_size=6).digest() for problem in problems)
    return base64.b64encode(b"".join(digests)).decode()


def _problem_changes(kind: str, theirs: str, ours: str) -> list[str]:
    """A list with a description of the difference between two lists of encoded problems; empty if they are equal."""
    if theirs == ours:
        return []
    old, new = (Counter(text[i : i + _CHARACTERS] for i in range(0, len(text), _CHARACTERS)) for text in (theirs, ours))
    added, gone, total = (new - old).total(), (old - new).total(), new.total()
    if not added and not gone:
        return [f"the {total} {kind} are in another order"]
    if added == gone:
        return [f"{added} of {total} {kind} differ from those of the run"]
    return [f"{total} {kind} instead of the run's {old.total()} ({added} were added, {gone} were removed)"]


def require_same_tokenizer(record: dict, tokenizer: TextTokenizer, where: str) -> None:
    """Raises RunError if the parameters in `where` were trained with another tokenizer."""
    if record["task"]["tokenizer"]["sha256"] != tokenizer.digest:
        raise RunError(
            f"{where} was trained with another tokenizer. Restore the tokenizer of the task or of the pretrained "
            "model, or start another run with --run FOLDER"
        )


def encode_shapes(params) -> dict[str, list[int]]:
    return {jax.tree_util.keystr(path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def require_same_shapes(record: dict, params, where: str) -> None:
    """Raises RunError with the first differences if the parameters in `where` have other shapes."""
    theirs, ours = record["shapes"], encode_shapes(params)
    different = [
        f"{name} is {theirs.get(name, 'absent')}, expected {ours.get(name, 'absent')}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if different:
        raise RunError(
            f"{where} holds another model: {'; '.join(different[:3])}. Use the `model` settings of that run, or start "
            "another run with --run FOLDER"
        )


def require_same_data(record: dict, data: TaskData, where: str) -> None:
    """Raises RunError with the changes if the run in `where` was trained with other task data."""
    theirs, ours = record["task"], encode_data(data)
    kinds = ("prompts", "demonstrations", "held-out problems")
    changes = [change for kind in kinds for change in _problem_changes(kind, theirs[kind], ours[kind])]
    if theirs["stop tokens"] != ours["stop tokens"]:
        changes.append(f"the stop tokens are {ours['stop tokens']} instead of {theirs['stop tokens']}")
    if theirs["tokenizer"]["sha256"] != ours["tokenizer"]["sha256"]:
        changes.append("the tokenizer differs")
    if changes:
        raise RunError(
            f"{where} was trained with other task data: {'; '.join(changes)}. Restore the task's data, or start "
            "another run with --run FOLDER"
        )


def read_params(folder: Path, abstract: Params, tokenizer: TextTokenizer, where: str) -> Restored | None:
    """Parameters and record of the newest undamaged checkpoint in `folder`, or None if it has no checkpoint.

    Raises RunError if the checkpoint has another format version, model (`abstract`) or tokenizer.
    """

    def target(record: dict) -> Params:
        require_same_version(record, where)
        require_same_tokenizer(record, tokenizer, where)
        require_same_shapes(record, abstract, where)
        return abstract

    checkpoints = Checkpoints(folder, read_only=True)
    restored = checkpoints.restore_params(target, print)
    checkpoints.close()
    return restored
