"""A run's folder: the config that it belongs to, and small files that are replaced whole."""

import json
import os
from pathlib import Path

from filelock import FileLock, Timeout

from rljax.training.checkpoint.compatibility import VERSION, require_same_version
from rljax.training.config import Config
from rljax.training.description import describe, differences

# What may differ between two commands that go on with the same run: where and how it is computed and watched.
_FREE = ("run", "mesh", "sharding", "steps", "checkpoint_every", "keep_every", "tensorboard", "evaluation")


def write_json(path: Path, value) -> None:
    """Writes `value` so that a reader, or a kill, sees the old file or the new one and nothing between."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path, default):
    """The file's value, or `default` if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def identity(config: Config) -> dict:
    """The part of a config that a run folder belongs to."""
    described = describe(config)
    described["task"].pop("data_dir", None)
    described["rollout"].pop("microbatches")
    described["likelihood"].pop("microbatches")
    return {name: value for name, value in described.items() if name not in _FREE}


class RunFolder:
    """The folder of one run, held by one command at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(path / ".lock")

    def hold(self) -> None:
        """Takes the folder for this process; raises ValueError if another holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"run = {str(self.path)!r}: another process is using this folder; wait for it, or choose "
                             "another with --run FOLDER") from None  # fmt: skip

    def claim(self, config: Config, recipe: Path, overrides: list[str]) -> None:
        """Records the config that the folder belongs to.

        Raises ValueError, naming the fields, if it is another's, RunError if another version of rljax saved it.
        """
        owner = read_json(self.path / "config.json", None)
        if owner is not None and any((self.path / "checkpoints").glob("[0-9]*")):  # before, nothing is lost
            require_same_version(owner, f"run = {str(self.path)!r}")
            changed = differences(owner["identity"], json.loads(json.dumps(identity(config))))
            if changed:
                raise ValueError(f"run = {str(self.path)!r} belongs to another config ({'; '.join(changed[:5])}): "
                                 "choose another folder with --run FOLDER, or delete this one")  # fmt: skip
        owner = {"version": VERSION, "recipe": str(recipe.absolute()), "overrides": overrides,
                 "identity": identity(config)}  # fmt: skip
        write_json(self.path / "config.json", {**owner, "config": describe(config)})

    @staticmethod
    def command(path: Path) -> tuple[Path, list[str]]:
        """(recipe, overrides) of the run in a folder; raises FileNotFoundError if there is none."""
        owner = read_json(path / "config.json", None)
        if owner is None:
            raise FileNotFoundError(f"run = {str(path)!r} holds no run: give the folder that a training printed")
        return Path(owner["recipe"]), owner["overrides"]
