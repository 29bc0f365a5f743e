"""The folder of a run: its lock, its recorded config and atomic writes of small files."""

import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from rljax.models import PretrainedModel
from rljax.text import TextTokenizer
from rljax.training.checkpoint.compatibility import TOKENIZER, VERSION, require_same_version
from rljax.training.config import Config
from rljax.training.description import describe, differences

# Fields that may change when a run is resumed.
_FREE = ("run", "mesh", "sharding", "steps", "checkpoint_every", "keep_every", "tensorboard", "evaluation")


def write_json(path: Path, value) -> None:
    """Writes `value` as JSON, atomically."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def read_json(path: Path, default):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def save_tokenizer(run: Path, tokenizer: TextTokenizer) -> None:
    """Writes the tokenizer's files into the run's folder `tokenizer`, atomically; replaces those of an earlier run."""
    folder, partial = run / TOKENIZER, run / f"{TOKENIZER}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # from an interrupted attempt
    partial.mkdir(parents=True)
    tokenizer.save(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def identity(config: Config) -> dict:
    """The part of a config that must stay equal when the run is resumed.

    Of a pretrained model it holds the options in config.json instead of the folder, which may move. The run's own
    checkpoints replace the weights in the folder.
    """
    described, model = describe(config), config.model
    if isinstance(model, PretrainedModel):
        built = model.build(vocab_size=0, value_head=False, rules=config.sharding)
        described["model"] = describe(built.config)
    described["task"].pop("data_dir", None)
    described["rollout"].pop("microbatches")
    described["likelihood"].pop("microbatches")
    return {name: value for name, value in described.items() if name not in _FREE}


class RunFolder:
    """The folder of one run, locked by one command at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(path / ".lock")

    def hold(self) -> None:
        """Locks the folder for this process; raises ValueError if another process has locked it."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(f"run = {str(self.path)!r}: another process is using this folder; wait until it ends, or "
                             "choose another folder with --run FOLDER") from None  # fmt: skip

    def claim(self, config: Config, recipe: Path, overrides: list[str]) -> None:
        """Records the config; raises ValueError if the checkpoints have another config, RunError if another format."""
        owner = read_json(self.path / "config.json", None)
        if owner is not None and any((self.path / "checkpoints").glob("[0-9]*")):  # without checkpoints nothing is lost
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
        """(recipe, overrides) of the run in a folder; raises FileNotFoundError if the folder holds no run."""
        owner = read_json(path / "config.json", None)
        if owner is None:
            raise FileNotFoundError(f"run = {str(path)!r} holds no run: expected the folder of a training run")
        return Path(owner["recipe"]), owner["overrides"]
