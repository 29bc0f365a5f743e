"""SHA-256 digests of a checkpoint's files, written with the files and verified before restoring.

Each process computes the digests of the files that it wrote, on Orbax's background thread, before Orbax renames the
checkpoint to its final name. Files that Orbax adds later (`commit_success.txt`, and `_CHECKPOINT_METADATA` beside the
items) have no digest and are not used for restoring.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.handlers import DefaultCheckpointHandlerRegistry

ITEMS = ("record", "state")
"""The items of a checkpoint; each is a folder."""
_THREADS = min(8, os.cpu_count() or 1)  # threads run in parallel, since hashlib releases the GIL
_COMMITTED = "commit_success.txt"


class _AfterCommits:
    """An Orbax future that waits for `commits` and then calls `then`, in the thread that calls `result`."""

    def __init__(self, commits, then):
        self._commits, self._then = commits, then

    def result(self, timeout: float | None = None) -> None:
        for commit in self._commits:
            commit.result(timeout=timeout)
        self._then()


class _Digested:
    """Handler mixin that adds digests: each process for its own files, process 0 for all remaining files."""

    async def async_save(self, directory, *args, **kwargs):
        commits = await super().async_save(directory, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return [_AfterCommits(commits or (), lambda: self._write_own(Path(os.fspath(directory))))]

    def _write_own(self, folder: Path) -> None:
        index = jax.process_index()
        if index > 0:
            _write(folder, index, (path for path in _files(folder) if _is_of(path, index)))

    def finalize(self, directory) -> None:
        """Called by Orbax only on process 0, after all processes have written."""
        super().finalize(directory)  # pyright: ignore[reportAttributeAccessIssue]
        folder = Path(os.fspath(directory))
        _write(folder, 0, _files(folder) - _recorded(folder).keys())


class _State(_Digested, ocp.StandardCheckpointHandler):
    pass


class _Record(_Digested, ocp.JsonCheckpointHandler):
    pass


def handlers() -> DefaultCheckpointHandlerRegistry:
    registry, state, record = DefaultCheckpointHandlerRegistry(), _State(), _Record()
    registry.add("state", ocp.args.StandardSave, state)
    registry.add("state", ocp.args.StandardRestore, state)
    registry.add("state", ocp.args.PyTreeRestore, ocp.PyTreeCheckpointHandler())
    registry.add("record", ocp.args.JsonSave, record)
    registry.add("record", ocp.args.JsonRestore, record)
    return registry


def absent(checkpoint: Path) -> bool:
    """True if a checkpoint was written without digests (format version 1)."""
    return not any(checkpoint.glob(f"*/{_name('*')}"))


def find_fault(checkpoint: Path, share: int = 0, shares: int = 1) -> str:
    """Path and fault of the first damaged file, or ""; verifies every `shares`-th digest from index `share` on."""
    for item in ITEMS:
        folder = checkpoint / item
        try:
            fault = _item_fault(folder, share, shares)
        except OSError as error:
            fault = f"{os.path.relpath(error.filename or folder, folder)} cannot be read ({error.strerror})"
        except ValueError as error:
            fault = str(error)
        if fault:
            return f"{item}/{fault}"
    return ""


def _item_fault(folder: Path, share: int, shares: int) -> str:
    recorded, own = _recorded(folder), _name(0)
    if not (folder / own).is_file():
        return f"{own} is missing"
    found = _files(folder) - {own}
    for path in sorted(recorded.keys() | found):
        if path not in found:
            return f"{path} is missing"
        if path not in recorded:
            return f"{path} was added after the checkpoint was written"
    mine = sorted(found)[share::shares]
    for path, digest in zip(mine, _digests(folder, mine), strict=True):
        if digest != recorded[path]:
            return f"{path} has changed since it was written"
    return ""


def _files(folder: Path) -> set[str]:
    """Paths of the item's files relative to its folder, without Orbax's commit marker."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return {path for path in paths if path != _COMMITTED}


def _is_of(path: str, process: int) -> bool:
    """True if `process` wrote the file, according to Orbax's naming of files and folders."""
    return any(part in (f"ocdbt.process_{process}", f"process_{process}") for part in path.split("/"))


def _name(process: int | str) -> str:
    return f"digests.process_{process}.json"


def _write(folder: Path, process: int, paths: Iterable[str]) -> None:
    paths = sorted(paths)
    digests = dict(zip(paths, _digests(folder, paths), strict=True))
    (folder / _name(process)).write_text(json.dumps(digests, indent=1), encoding="utf-8")


def _recorded(folder: Path) -> dict[str, str]:
    """All digests of an item; raises ValueError if a digest file cannot be parsed."""
    recorded = {}
    for path in sorted(folder.glob(_name("*"))):
        try:
            recorded |= json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path.name} has changed since it was written") from error
    return recorded


def _digests(folder: Path, paths: list[str]) -> list[str]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda path: _digest(folder / path), paths))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
