"""Files in a folder that others wrote, read without trusting their names, links and contents."""

import json
from pathlib import Path
from typing import Any


def require_folder(folder: Path) -> Path:
    """Raises FileNotFoundError if a model folder does not exist, and ValueError if it is a file."""
    if not folder.exists():
        raise FileNotFoundError(f"folder = {str(folder)!r} does not exist: expected the folder of a model. "
                                f"{_download(folder)}")  # fmt: skip
    if not folder.is_dir():
        raise ValueError(f"folder = {str(folder)!r} is a file: expected the folder of a model, which contains it")
    return folder


def _download(folder: Path) -> str:
    if folder.parts[-2:] == ("models", "smollm2"):
        return "`make models/smollm2` creates it"
    return f"To download a model: `hf download ORG/NAME --local-dir {folder}`"


def inside(folder: Path, name: str) -> Path:
    """The path of a file in `folder`.

    Raises ValueError if the name is not a plain file name, or if it is a link that leads out of the folder; links into
    the `blobs` of a Hugging Face cache are followed. Raises FileNotFoundError if the file does not exist.
    """
    path = folder / name
    if not name or Path(name).name != name or "\\" in name:
        raise ValueError(f"{folder}: file = {name!r}: expected the name of a file in this folder")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected this file in the model folder")
    home, target = folder.resolve(), path.resolve()
    cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if target.parent not in (home, *cache):
        raise ValueError(f"{path}: expected a file in this folder, found a link to {target}")
    return path


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of `folder`; raises as `inside`, and ValueError if the file holds anything else."""
    path = inside(folder, name)
    return parse_json(path.read_bytes(), path)


def parse_json(contents: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in the contents of `path`."""
    try:
        value = json.loads(contents)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: expected JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def shown(value: object) -> str:
    """`value` as in Python, cut after 200 characters: a file may hold a list of any length."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
