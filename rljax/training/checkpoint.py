"""Checkpoints: everything a run needs to go on as if it had never stopped.

One checkpoint holds the parameters, the optimizer's state, the reference, and a record in JSON (phase, step, key, place
in the data, tokenizer, config). Every process reads the same data, so one place serves all of them, and a run may go on
with another number of processes. Checkpoints are written asynchronously and appear whole or not at all.
"""

import base64
import errno
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class RunError(RuntimeError):
    """The run cannot go on; the message says why, what is kept, and what to do."""

    exit_code = 1


class Restored(NamedTuple):
    """What a checkpoint held."""

    record: dict
    tree: Any


@contextmanager
def _disk_errors(folder: Path):
    """A full disk, from whichever layer it comes, as one clear error."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(f"disk full while saving a checkpoint in {folder}: the last good checkpoint is kept. "
                           "Free some space and run the same command again") from error  # fmt: skip
        raise


class Checkpoints:
    """The checkpoints of one folder, newest last."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder = folder.absolute()  # Orbax fails in the background on a relative path
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, number: int, tree, record: dict) -> None:
        """Starts writing checkpoint `number`; the arrays may be donated as soon as this returns.

        Raises RunError on a full disk, before writing where that can be known, with the older checkpoints kept.
        """
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()
            self._check_space(tree)
            self._manager.save(number, args=ocp.args.Composite(
                state=ocp.args.StandardSave(tree),
                record=ocp.args.JsonSave(record),
            ))  # fmt: skip

    def _check_space(self, tree) -> None:
        need = sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.replica_id == 0)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(errno.ENOSPC, f"a checkpoint needs {need} bytes, {free} are free")

    def restore(self, target: Callable[[dict], Any], say: Callable[[str], None]) -> Restored | None:
        """The newest checkpoint that can be read, or None where there never was one.

        `target(record)` gives the tree of shapes and shardings to restore into. A checkpoint that cannot be read is
        put aside as `corrupt-checkpoints-N` beside this folder, and `say` is told. Raises RunError where none of those
        present can be read.
        """
        numbers = sorted(self._manager.all_steps(), reverse=True)
        for number in numbers:
            read = self._read(number, say, record=ocp.args.JsonRestore())
            if read is None:
                continue
            tree = target(read["record"])  # what this raises says nothing of the checkpoint
            held = self._read(number, say, state=ocp.args.StandardRestore(tree))
            if held is not None:
                return Restored(read["record"], held["state"])
        if numbers:
            raise RunError(
                f"none of the checkpoints in {self.folder} can be read; they were put aside as "
                f"corrupt-{self.folder.name}-N beside it. Run the same command again to start from the beginning"
            )
        return None

    def _read(self, number: int, say: Callable[[str], None], **items):
        """The items of a checkpoint, or None, after saying so and putting it aside, where they cannot be read."""
        try:
            return self._manager.restore(number, args=ocp.args.Composite(**items))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            say(f"checkpoint {number} in {self.folder} cannot be read ({reason}): using the one before it")
            self._put_aside(number)
            return None

    def restore_params(self, abstract) -> Restored | None:
        """The newest checkpoint's parameters alone, into the shapes and shardings of `abstract`; None without one."""
        number = self._manager.latest_step()
        if number is None:
            return None
        item = {"params": abstract}
        restored = self._manager.restore(number, args=ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
           
            record=ocp.args.JsonRestore(),
        ))  # fmt: skip
        return Restored(restored["record"], restored["state"])

    def _put_aside(self, number: int) -> None:
        if jax.process_index() == 0:
            (self.folder / str(number)).rename(self.folder.parent / f"corrupt-{self.folder.name}-{number}")
        self._manager.reload()

    def wait(self) -> None:
        """Until the save in flight is on disk; raises RunError where it failed."""
        with _disk_errors(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and releases the manager."""
        self.wait()
        self._manager.close()


def encode(model_proto: bytes) -> str:
    """A tokenizer's bytes, for the record."""
    return base64.b64encode(model_proto).decode()


def encode_key(key: jax.Array) -> dict:
    """A random key, for the record."""
    return {"words": jax.random.key_data(key).tolist(), "implementation": str(jax.random.key_impl(key))}


def decode_key(record: dict) -> jax.Array:
    """The random key of a record."""
    return jax.random.wrap_key_data(jnp.array(record["words"], jnp.uint32), impl=record["implementation"])
