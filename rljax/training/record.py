"""What a checkpoint's record says in JSON: keys, and whose data the parameters were trained on."""

import base64
import hashlib

import jax
import jax.numpy as jnp

from rljax.tasks import TaskData
from rljax.training.checkpoint import RunError


def encode_key(key: jax.Array) -> dict:
    """A random key, for the record."""
    return {"words": jax.random.key_data(key).tolist(), "implementation": str(jax.random.key_impl(key))}


def decode_key(record: dict) -> jax.Array:
    """The random key of a record."""
    return jax.random.wrap_key_data(jnp.array(record["words"], jnp.uint32), impl=record["implementation"])


def encode_data(data: TaskData) -> dict:
    """The tokenizer, whole, and a digest of the problems trained on."""
    problems = repr((data.demonstrations, data.prompts)).encode()
    return {
        "tokenizer": base64.b64encode(data.tokenizer.model_proto).decode(),
        "problems": hashlib.sha256(problems).hexdigest(),
    }


def require_same_tokenizer(record: dict, data: TaskData, where: str) -> None:
    """Raises RunError where the parameters in `where` were trained with another tokenizer than the task's."""
    if base64.b64decode(record["task"]["tokenizer"]) != data.tokenizer.model_proto:
        raise RunError(
            f"{where} was trained with another tokenizer: the task's text has changed since. Give the task "
            "as it was, or start another run with --run FOLDER"
        )


def encode_shapes(params) -> dict[str, list[int]]:
    """The shape of every parameter by its path, for the record."""
    return {jax.tree_util.keystr(path): list(x.shape) for path, x in jax.tree_util.tree_leaves_with_path(params)}


def require_same_shapes(record: dict, params, where: str) -> None:
    """Raises RunError, naming the first that differ, where the parameters in `where` are another model's."""
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
    """Raises RunError where the run in `where` was trained with another tokenizer or on other problems."""
    require_same_tokenizer(record, data, where)
    if record["task"]["problems"] != encode_data(data)["problems"]:
        raise RunError(
            f"{where} was trained on other problems: the task's data have changed since. Give the task "
            "as it was, or start another run with --run FOLDER"
        )
