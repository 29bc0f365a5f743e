"""Problems of a jsonl file, and clear errors for lines that are not one."""

import dataclasses
import json
from pathlib import Path

from rljax.tasks.task import Problem


def read_jsonl(path: Path) -> list[Problem]:
    """The problems of a file of `{"prompt", "answer"}` lines, `solution` and `level` optional; other fields are `info`.

    Raises ValueError that names the file, the line's number and what is wrong with it.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"path = {str(path)!r}: expected a readable jsonl file ({error.strerror})") from error
    if not lines[-1]:
        del lines[-1]  # the last line ends in a newline, too
    if not lines:
        raise ValueError(f"{path} is empty: expected one JSON object with a prompt and an answer in each line")
    return [_read_line(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _read_line(place: str, line: bytes) -> Problem:
    if not line.strip():
        raise ValueError(f"{place} is empty: remove it, or write a JSON object with a prompt and an answer")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 (byte {error.start + 1}): expected a JSON object in UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON ({error}): {line[:60].decode(errors='replace')!r}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: expected an object with a prompt and an answer")
    if missing := [name for name in ("prompt", "answer") if name not in row]:
        raise ValueError(f"{place} has no {' and no '.join(missing)}: its fields are {', '.join(row) or 'none'}")
    texts = {field.name for field in dataclasses.fields(Problem)} - {"info"}
    fields = {name: row[name] for name in row if name in texts}
    for name, value in fields.items():
        _check_text(f"{place}: {name}", value)
    if not fields["prompt"]:
        raise ValueError(f"{place}: prompt = '': expected at least one character")
    return Problem(**fields, info={name: row[name] for name in row if name not in texts})


def _check_text(name: str, value) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: expected a string, in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} = {value!r}: a lone surrogate at {error.start} is no Unicode text") from error
