"""Distinct questions of reasoning-gym, as a script that does not import rljax.

Some generators of reasoning-gym iterate over sets of strings or call the `random` module, so that their questions
differ between processes. `generate` runs this file in a new process with a fixed hash seed.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_TUPLE, _PAIRS = "\x00tuple", "\x00pairs"  # keys that mark a tuple and a mapping whose keys are not strings


class Request(NamedTuple):
    """A number of questions of one category."""

    name: str
    """Name of the category in reasoning-gym."""
    settings: dict[str, Any]
    """Fields of the category's configuration."""
    seed: int
    """Seed of the questions."""
    count: int
    """Number of distinct questions."""


def make_dataset(name: str, settings: Mapping[str, Any], seed: int = 0, size: int = 1):
    """The generator and scorer of a category."""
    from reasoning_gym import create_dataset

    return create_dataset(name, **settings, seed=seed, size=size)


def distinct(request: Request) -> list[dict[str, Any]]:
    """The first `count` entries with different questions, or fewer if many draws find no more."""
    draws = 20 * request.count + 1000
    dataset = make_dataset(request.name, request.settings, request.seed, draws)
    found: dict[str, dict[str, Any]] = {}
    for i in range(draws):
        if len(found) == request.count:
            break
        random.seed(request.seed + i)
        entry = dataset[i]
        found.setdefault(entry["question"].strip(), entry)
    return list(found.values())


def encode_entry(value: Any) -> Any:
    """`value` as JSON data from which `decode_entry` restores tuples and keys that are not strings."""
    if isinstance(value, dict):
        pairs = [[encode_entry(key), encode_entry(item)] for key, item in value.items()]
        return dict(pairs) if all(isinstance(key, str) for key in value) else {_PAIRS: pairs}
    if isinstance(value, list | tuple):
        items = [encode_entry(item) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def decode_entry(value: Any) -> Any:
    if isinstance(value, list):
        return [decode_entry(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(decode_entry(item) for item in value[_TUPLE])
    if _PAIRS in value:
        return {decode_entry(key): decode_entry(item) for key, item in value[_PAIRS]}
    return {key: decode_entry(item) for key, item in value.items()}


def generate(requests: Sequence[Request]) -> list[list[dict[str, Any]]]:
    """The encoded entries of each request, equal in every process."""
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-W", "ignore", __file__]
    result = subprocess.run(
        command, input=json.dumps(requests), env=environment, text=True, encoding="utf-8", capture_output=True
    )
    if result.returncode:
        raise RuntimeError(f"reasoning-gym failed to generate {[r.name for r in requests]}:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    asked = [Request(*request) for request in json.load(sys.stdin)]
    print("\n" + json.dumps([encode_entry(distinct(request)) for request in asked]))
