"""Reader of problems from a jsonl file."""

import codecs
import json
from pathlib import Path

from rljax.tasks.task import Problem
from rljax.text import Message

OPTIONAL = ("solution", "level")


def read_jsonl(path: Path) -> list[Problem]:
    """Problems of a UTF-8 file with one JSON object per line, in file order.

    The fields `prompt` and `answer` are required; `solution` and `level` are optional and may be null; all other fields
    become `info`. A `prompt` is a string or a list of chat messages, objects with the strings "role" and "content",
    which become `Problem.messages`; `Problem.prompt` is then the content of the last user message. Raises ValueError
    with the file, the line number and the fault if a line is invalid.
    """
    try:
        lines = Path(path).read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise ValueError(f"path = {str(path)!r}: expected a readable jsonl file ({error.strerror})") from error
    if not lines[-1]:
        del lines[-1]
    if not lines:
        raise ValueError(f"{path} is empty: expected one JSON object per line, with a prompt and an answer")
    return [_read_line(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _read_line(place: str, line: bytes) -> Problem:
    if not line.strip():
        raise ValueError(f"{place} is empty: expected a JSON object with a prompt and an answer, or no line")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is not UTF-8 (byte {error.start + 1}): expected a JSON object in UTF-8") from error
    except (ValueError, RecursionError) as error:  # ValueError also covers integers of over 4300 digits
        raise ValueError(
            f"{place} is not JSON ({error}): expected an object, found {line[:60].decode(errors='replace')!r}"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(f"{place} holds a {type(row).__name__}: expected an object with a prompt and an answer")
    if missing := [name for name in ("prompt", "answer") if name not in row]:
        raise ValueError(f"{place} has no {' and no '.join(missing)}: expected both, found {', '.join(row) or 'none'}")
    messages = _messages(f"{place}: prompt", row["prompt"]) if isinstance(row["prompt"], list) else ()
    fields = {"prompt": _last_user_text(messages) if messages else row["prompt"], "answer": row["answer"]}
    fields |= {name: row[name] for name in OPTIONAL if row.get(name) is not None}
    for name, value in fields.items():
        _check_text(f"{place}: {name}", value)
    if not fields["prompt"]:
        raise ValueError(f"{place}: prompt = '': expected at least one character")
    info = {name: value for name, value in row.items() if name not in ("prompt", "answer", *OPTIONAL)}
    return Problem(**fields, info=info, messages=messages)


def _messages(name: str, value: list) -> tuple[Message, ...]:
    """The messages of a chat, after checks of their fields and of their order."""
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f'{name}[{i}] = {message!r}: expected a message, {{"role": …, "content": …}}')
        for field in ("role", "content"):
            _check_text(f"{name}[{i}].{field}", message[field])
    if not value or value[-1]["role"] == "assistant" or not any(message["role"] == "user" for message in value):
        roles = [message["role"] for message in value]
        raise ValueError(f"{name} has messages with the roles {roles}: expected a user's message, and a last message "
                         "that the assistant answers")  # fmt: skip
    return tuple(value)


def _last_user_text(messages: tuple[Message, ...]) -> str:
    return next(message["content"] for message in reversed(messages) if message["role"] == "user")


def _check_text(name: str, value) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} = {value!r}: expected a string, in quotes")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} = {value!r}: expected Unicode, found a lone surrogate at {error.start}") from error
