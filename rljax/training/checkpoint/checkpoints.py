"""Checkpoints from which a run resumes exactly where it stopped.

A checkpoint holds the parameters, the optimizer state, in stage 2 the reference parameters and the carried state, and a
JSON record (stage, step, key, position in the data, task, config). A run can resume with a different number of
processes. Checkpoints are written asynchronously and atomically; digests of their files are verified before restoring.
"""

import errno
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from rljax.training.checkpoint import digests
from rljax.training.errors import RunError, disk_is_full


class Restored(NamedTuple):
    record: dict
    tree: Any


@contextmanager
def _disk_errors(folder: Path):
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise RunError(
            f"disk full while saving a checkpoint in {folder}: the last good checkpoint is kept. "
            "Free some space and run the same command again"
        ) from error


class Checkpoints:
    """The checkpoints in one folder; keeps the newest `keep`, or all if None. `read_only` never changes the folder."""

    def __init__(self, folder: Path, *, keep: int | None = 2, read_only: bool = False):
        self.folder, self.read_only = folder.absolute(), read_only  # Orbax rejects relative paths only when saving
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        absent = read_only and not folder.is_dir()
        self._manager = None
        if not absent:
            registry = digests.handlers()
            self._manager = ocp.CheckpointManager(self.folder, options=options, handler_registry=registry)

    def numbers(self) -> list[int]:
        return sorted(self._manager.all_steps()) if self._manager else []

    def clear(self) -> None:
        assert self._manager is not None
        for number in self.numbers():
            self._manager.delete(number)

    def save(self, number: int, tree, record: dict) -> None:
        """Starts writing a checkpoint in the background; the arrays may be donated after this call.

        Raises RunError if the disk is full.
        """
        assert self._manager is not None
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()
            self._check_space(tree)
            items = {"state": ocp.args.StandardSave(tree), "record": ocp.args.JsonSave(record)}
            if number in self.numbers():  # left by an earlier run; Orbax would silently keep the old one
                self._manager.delete(number)
            if not self._manager.save(number, args=ocp.args.Composite(**items)):
                raise RunError(f"checkpoint {number} in {self.folder} was not saved, and Orbax gave no reason")

    def _check_space(self, tree) -> None:
        need = sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.replica_id == 0)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(errno.ENOSPC, f"a checkpoint needs {need} bytes, but {free} bytes are free")

    def restore(self, target: Callable[[dict], Any], say: Callable[[str], None]) -> Restored | None:
        """Restores the newest undamaged checkpoint; returns None if the folder has no checkpoints.

        `target(record)` returns the shapes and shardings of the tree. `say` receives a message for each damaged
        checkpoint. Once an older checkpoint is restored, damaged ones are moved to `corrupt-checkpoints-N` beside this
        folder. If all checkpoints are damaged, nothing is moved and RunError is raised.
        """
        return self._newest(lambda record: ocp.args.StandardRestore(target(record)), say)

    def restore_params(self, target: Callable[[dict], Any], say: Callable[[str], None]) -> Restored | None:
        """Like `restore` for the parameters only, whose shapes and shardings `target(record)` returns."""

        def arguments(record):
            item = {"params": target(record)}
            restore = ocp.checkpoint_utils.construct_restore_args(item)
            return ocp.args.PyTreeRestore(item, restore_args=restore, partial_restore=True)

        return self._newest(arguments, say)

    def _newest(self, arguments: Callable[[dict], Any], say: Callable[[str], None]) -> Restored | None:
        bad = []
        for number in reversed(self.numbers()):
            restored = self._restored(number, arguments, say)
            if restored is not None:
                self._put_aside(bad)
                return restored
            bad.append(number)
        if bad:
            raise RunError(
                f"none of the checkpoints in {self.folder} can be read; they are left unchanged. Choose another "
                "folder with --run FOLDER, or move them away to start from the beginning"
            )
        return None

    def _restored(self, number: int, arguments: Callable[[dict], Any], say: Callable[[str], None]) -> Restored | None:
        folder = self.folder / str(number)
        fault = _first(digests.find_fault(folder, jax.process_index(), jax.process_count()))
        read = None
        if not fault or digests.absent(folder):
            read = self._read(number, say, record=ocp.args.JsonRestore())
        state = None if read is None else arguments(read["record"])  # raises RunError for another version
        if fault:
            say(self._lost(number, f"is damaged: {fault}"))
        if fault or read is None:
            return None
        held = self._read(number, say, state=state)
        return None if held is None else Restored(read["record"], held["state"])

    def _read(self, number: int, say: Callable[[str], None], **items):
        """Reads items of a checkpoint; reports the reason and returns None if any process cannot read them."""
        assert self._manager is not None
        read, fault = None, ""
        try:
            read = self._manager.restore(number, args=ocp.args.Composite(**items))
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
            fault = f"{type(error).__name__}: {reason}"
        fault = _first(fault)
        if fault:
            say(self._lost(number, f"cannot be read ({fault})"))
        return None if fault else read

    def _lost(self, number: int, why: str) -> str:
        older = [f"; going back to checkpoint {n}" for n in self.numbers() if n < number]
        return f"checkpoint {number} in {self.folder} {why}{older[-1] if older else ''}"

    def _put_aside(self, numbers: list[int]) -> None:
        if not numbers or self.read_only:
            return
        assert self._manager is not None
        if jax.process_index() == 0:
            for number in numbers:
                aside = self.folder.parent / f"corrupt-{self.folder.name}-{number}"
                shutil.rmtree(aside, ignore_errors=True)  # from an earlier damaged checkpoint N
                (self.folder / str(number)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("corrupt checkpoints put aside")
        self._manager.reload()

    def wait(self) -> None:
        """Waits until the current save is on disk; raises RunError if the disk is full."""
        with _disk_errors(self.folder):
            if self._manager is not None:
                self._manager.wait_until_finished()

    def close(self) -> None:
        self.wait()
        if self._manager is not None:
            self._manager.close()


def _first(fault: str) -> str:
    """The first non-empty fault over all processes, so that all processes choose the same checkpoint."""
    if jax.process_count() == 1:
        return fault
    encoded = np.frombuffer(fault.encode()[:256].ljust(256, b"\0"), np.uint8)
    texts = [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(encoded)]
    return next(filter(None, texts), "")
