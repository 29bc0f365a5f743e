"""Damage to a checkpoint's files is detected before anything is restored."""

import errno
import json
import random
import shutil
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.training.checkpoint import digests
from rljax.training.checkpoint.checkpoints import Checkpoints
from rljax.training.errors import RunError
from tests.training.subprocesses import ROOT, environment

pytestmark = pytest.mark.standard_promotion
TREE = {"params": {"matrix": jnp.arange(64.0).reshape(8, 8), "vector": jnp.ones(3)}, "count": jnp.int32(4)}
UNCOVERED = (
    "commit_success.txt",
    "_CHECKPOINT_METADATA",
)  # Orbax writes these files after the digests, and nothing is restored from them


def target(record, tree=TREE):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "c"
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(step, jax.tree.map(lambda x, step=step: x * step, TREE), {"step": step, "text": "é"})
    checkpoints.close()
    return folder


def files(checkpoint):
    found = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in UNCOVERED)
    assert {"record", "state"} == {path.relative_to(checkpoint).parts[0] for path in found}
    return found


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def restore(folder):
    """(step, messages) of restoring the whole tree; asserts the same for the parameters only."""
    said, reader = [], Checkpoints(folder, read_only=True)
    restored = reader.restore(target, said.append)
    params = reader.restore_params(lambda record: target(record)["params"], said.append)
    reader.close()
    step = restored.record["step"]
    assert params.record["step"] == step
    np.testing.assert_array_equal(np.asarray(restored.tree["params"]["matrix"]), step * TREE["params"]["matrix"])
    np.testing.assert_array_equal(np.asarray(params.tree["params"]["matrix"]), step * TREE["params"]["matrix"])
    assert said[: len(said) // 2] == said[len(said) // 2 :]
    return step, said[: len(said) // 2]


def test_an_undamaged_checkpoint_is_restored_without_a_message(saved):
    assert restore(saved) == (2, [])
    assert all(digests.find_fault(saved / number) == "" for number in ("1", "2"))


def test_a_flipped_bit_in_any_file_is_found_and_the_older_checkpoint_is_taken(saved, tmp_path):
    for i, original in enumerate(files(saved / "2")):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        flip_a_bit(folder / original.relative_to(saved))
        step, said = restore(folder)
        assert step == 1
        name = original.relative_to(saved / "2").as_posix()
        assert len(said) == 1
        assert said[0].startswith(f"checkpoint 2 in {folder} is damaged: ")
        assert said[0].endswith("; going back to checkpoint 1")
        assert name in said[0] or "digests" in name  # a changed digest is reported for the file that it belongs to
    assert i >= 8


def delete(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "what"), [(delete, "is missing"), (truncate, "has changed"), (empty, "has changed")]
)
def test_a_deleted_or_truncated_file_is_found(saved, tmp_path, damage, what):
    for i, original in enumerate(files(saved / "2")):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        damage(folder / original.relative_to(saved))
        fault = digests.find_fault(folder / "2")
        assert fault.startswith(original.relative_to(saved / "2").as_posix()), fault
        assert what in fault


def test_an_added_file_and_a_missing_item_are_found(saved, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    (folder / "2/state/d/0123").write_bytes(b"")
    assert restore(folder) == (1, [f"checkpoint 2 in {folder} is damaged: state/d/0123 was added after the checkpoint "
                                   "was written; going back to checkpoint 1"])  # fmt: skip
    shutil.rmtree(folder / "2/state")
    assert digests.find_fault(folder / "2") == "state/digests.process_0.json is missing"


def test_an_unreadable_file_is_reported_as_damage_without_an_exception(saved, monkeypatch):
    """With several processes, an error in one process would leave the other processes waiting."""

    def unreadable(path):
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(digests, "_digest", unreadable)
    assert digests.find_fault(saved / "2") == "record/metadata cannot be read (Input/output error)"


def test_the_writer_puts_a_damaged_checkpoint_aside(saved, tmp_path):
    folder, said = tmp_path / "c", []
    shutil.copytree(saved, folder)
    flip_a_bit(folder / "2/record/metadata")
    writer = Checkpoints(folder)
    assert writer.restore(target, said.append).record["step"] == 1
    writer.save(2, TREE, {"step": 22})  # the resumed run reaches step 2 again
    writer.close()
    assert len(said) == 1
    assert (tmp_path / "corrupt-c-2").is_dir()
    assert Checkpoints(folder, read_only=True).restore(target, said.append).record["step"] == 22
    assert len(said) == 1


def test_a_checkpoint_without_digests_is_read_only_to_name_its_version(saved, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(saved, folder)
    for path in folder.rglob("digests.*"):
        path.unlink()
    said = []

    def refuse(record):
        raise RunError(f"another version, at step {record['step']}")

    reader = Checkpoints(folder, read_only=True)
    with pytest.raises(RunError, match="another version, at step 2"):
        reader.restore(refuse, said.append)
    with pytest.raises(RunError, match="none of the checkpoints"):
        reader.restore(target, said.append)
    assert [f"checkpoint {n}" in line and "is missing" in line for n, line in zip((2, 1), said, strict=True)] == [
        True
    ] * 2


def test_digests_are_computed_off_the_calling_thread_before_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    original, seen = digests._write, []

    def write(folder, *arguments):
        seen.append((threading.current_thread() is threading.main_thread(), (tmp_path / "c" / "5").exists()))
        original(folder, *arguments)

    monkeypatch.setattr(digests, "_write", write)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(5, TREE, {})
    checkpoints.close()
    assert seen == [(False, False)] * 2  # for the record and for the state
    assert digests.find_fault(tmp_path / "c" / "5") == ""


def test_a_checkpoint_whose_digests_cannot_be_written_does_not_appear(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, TREE, {"step": 1})
    checkpoints.wait()

    def fail(*arguments):
        raise OSError("no digests")

    monkeypatch.setattr(digests, "_write", fail)
    checkpoints.save(2, TREE, {"step": 2})
    with pytest.raises(OSError, match="no digests"):
        checkpoints.wait()
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "c", read_only=True).numbers() == [1]


TWO = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from rljax.training.checkpoint.checkpoints import Checkpoints
folder, sharding = Path(sys.argv[3]), NamedSharding(Mesh(jax.devices(), ("x",)), P("x"))
tree = {"params": {"matrix": jax.jit(lambda: jnp.arange(64.0).reshape(8, 8), out_shardings=sharding)()}}
target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
checkpoints = Checkpoints(folder)
if sys.argv[4] == "save":
    for step in (1, 2):
        checkpoints.save(step, tree, {"step": step})
else:
    restored = checkpoints.restore(lambda record: target, lambda text: print("message:", text))
    shards = restored.tree["params"]["matrix"].addressable_shards
    print("step", restored.record["step"], sum(float(shard.data.sum()) for shard in shards))
checkpoints.close()
"""


def in_two_processes(folder, action):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    workers = [
        subprocess.Popen([sys.executable, "-c", TWO, address, str(i), str(folder), action], env=environment(2),
                         cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        for i in range(2)
    ]  # fmt: skip
    done = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], done
    return [output for output, _ in done]


def test_each_process_computes_the_digests_of_its_files_and_all_take_the_same_checkpoint(tmp_path):
    folder = tmp_path / "c"
    in_two_processes(folder, "save")
    own = [json.loads((folder / f"2/state/digests.process_{i}.json").read_text(encoding="utf-8")) for i in range(2)]
    assert not own[0].keys() & own[1].keys()
    theirs = [path for path in own[1] if path.startswith("ocdbt.process_1/d/")]
    assert theirs
    assert not any("process_1/" in path for path in own[0])
    assert digests.find_fault(folder / "2") == ""
    flip_a_bit(folder / "2/state" / theirs[0])
    said = (f"message: checkpoint 2 in {folder} is damaged: state/{theirs[0]} has changed since it was written; "
            "going back to checkpoint 1")  # fmt: skip
    first, second = in_two_processes(folder, "restore")
    assert first.splitlines()[-2:] == [said, f"step 1 {float(np.arange(32).sum())}"]
    assert second.splitlines()[-2:] == [said, f"step 1 {float(np.arange(32, 64).sum())}"]
    assert (tmp_path / "corrupt-c-2").is_dir()
