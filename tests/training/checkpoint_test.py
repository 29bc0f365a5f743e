import collections
import errno
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import make_mesh
from rljax.training import MeshConfig
from rljax.training.checkpoint.checkpoints import Checkpoints
from rljax.training.checkpoint.compatibility import VERSION, encode_shapes, require_same_shapes, require_same_version
from rljax.training.errors import RunError, disk_is_full
from rljax.training.keys import decode_key, encode_key
from rljax.training.optimizer import abstract_state, init_state

pytestmark = pytest.mark.standard_promotion

MESHES = [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=8)]


def tree_on(config, scale=1.0):
    mesh = make_mesh(config)
    matrix = jnp.arange(64.0).reshape(8, 8) * scale
    params = {"matrix": jax.device_put(matrix, NamedSharding(mesh, P("fsdp", "tensor")))}
    optimizer = optax.adamw(1e-3)
    state = init_state(optimizer, params)
    _, state = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, params), state, params)
    return optimizer, {"params": params, "opt": state}


def abstract(optimizer, params):
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    return {"params": target, "opt": abstract_state(optimizer, target)}


def fail(text):
    raise AssertionError(text)


@pytest.mark.parametrize("there", MESHES)
def test_what_is_saved_on_one_mesh_is_restored_on_another(tmp_path, there):
    optimizer, tree = tree_on(MESHES[1])
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(3, tree, {"step": 3})
    checkpoints.close()
    target = abstract(optimizer, tree_on(there)[1]["params"])
    restored = Checkpoints(tmp_path / "c").restore(lambda record: target, fail)
    assert restored.record == {"step": 3}
    for ours, theirs in zip(jax.tree.leaves(restored.tree), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    assert isinstance(restored.tree["opt"][0], optax.ScaleByAdamState)
    assert restored.tree["opt"][0].mu["matrix"].sharding.is_equivalent_to(target["params"]["matrix"].sharding, 2)


def test_parameters_alone(tmp_path):
    optimizer, tree = tree_on(MESHES[0])
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, tree, {"step": 1})
    checkpoints.close()
    target = abstract(optimizer, tree["params"])["params"]
    restored = Checkpoints(tmp_path / "c", read_only=True).restore_params(lambda record: target, fail)
    assert set(restored.tree) == {"params"}
    np.testing.assert_array_equal(np.asarray(restored.tree["params"]["matrix"]), np.asarray(tree["params"]["matrix"]))
    assert Checkpoints(tmp_path / "none", read_only=True).restore_params(lambda record: target, fail) is None
    assert not (tmp_path / "none").exists()


def test_a_reader_leaves_what_is_being_written_alone(tmp_path):
    unfinished = tmp_path / "c" / "5.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    Checkpoints(tmp_path / "c", read_only=True).close()
    assert unfinished.is_dir()
    Checkpoints(tmp_path / "c").close()  # a writer, as after a kill
    deadline = time.monotonic() + 20
    while unfinished.exists():  # deleted in the background
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_corrupt_checkpoint_is_put_aside_once_an_older_one_was_read(tmp_path):
    optimizer, tree = tree_on(MESHES[0])
    checkpoints = Checkpoints(tmp_path / "c")
    for step in (1, 2):
        checkpoints.save(step, tree, {"step": step})
    checkpoints.close()
    shutil.rmtree(tmp_path / "c" / "2" / "state")
    said, target = [], abstract(optimizer, tree["params"])
    read = Checkpoints(tmp_path / "c", read_only=True).restore_params(lambda record: target["params"], said.append)
    assert read.record == {"step": 1}
    assert (tmp_path / "c" / "2").is_dir()  # a reader moves nothing
    restored = Checkpoints(tmp_path / "c").restore(lambda record: target, said.append)
    assert restored.record == {"step": 1}
    assert (tmp_path / "corrupt-c-2").is_dir()
    assert [text.startswith("checkpoint 2 in") for text in said] == [True, True]


def test_every_checkpoint_corrupt_is_an_error_that_keeps_them(tmp_path):
    optimizer, tree = tree_on(MESHES[0])
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, tree, {"step": 1})
    checkpoints.close()
    shutil.rmtree(tmp_path / "c" / "1" / "state")
    said = []
    with pytest.raises(RunError, match="none of the checkpoints"):
        Checkpoints(tmp_path / "c").restore(lambda record: abstract(optimizer, tree["params"]), said.append)
    assert len(said) == 1
    assert "checkpoint 1" in said[0]
    assert (tmp_path / "c" / "1").is_dir()


def test_a_number_saved_again_is_the_newer_tree(tmp_path):
    optimizer, tree = tree_on(MESHES[0])
    for step, factor in ((1, 1.0), (2, 3.0)):  # the second run starts again in the same folder
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.save(0, jax.tree.map(lambda x, factor=factor: x * factor, tree["params"]), {"step": step})
        checkpoints.close()
    target = abstract(optimizer, tree["params"])["params"]
    restored = Checkpoints(tmp_path / "c").restore(lambda record: target, fail)
    assert restored.record == {"step": 2}
    np.testing.assert_array_equal(np.asarray(restored.tree["matrix"]), 3 * np.asarray(tree["params"]["matrix"]))


def test_parameters_of_another_model_are_refused_by_name():
    params = {"a": np.zeros((2, 3)), "b": np.zeros(4)}
    record = {"shapes": encode_shapes(params)}
    require_same_shapes(record, params, "run = 'r'")
    with pytest.raises(RunError, match=r"run = 'r' holds another model: \['a'\] is \[2, 3\], expected \[2, 5\]"):
        require_same_shapes(record, {**params, "a": np.zeros((2, 5))}, "run = 'r'")
    with pytest.raises(RunError, match=r"\['b'\] is \[4\], expected absent"):
        require_same_shapes(record, {"a": params["a"]}, "run = 'r'")
    with pytest.raises(RunError, match=r"\['c'\] is absent, expected \[1\]"):
        require_same_shapes(record, {**params, "c": np.zeros(1)}, "run = 'r'")


def test_a_device_out_of_memory_is_not_reported_as_a_full_disk():
    assert disk_is_full(OSError(errno.ENOSPC, "no room"))
    assert disk_is_full(RuntimeError("… No space left on device"))
    assert not disk_is_full(RuntimeError("RESOURCE_EXHAUSTED: Attempting to allocate 4.39G. There are 2.30G free"))


def test_a_key_survives_the_record():
    key = jax.random.fold_in(jax.random.key(7), 3)
    assert jax.random.uniform(decode_key(encode_key(key))) == jax.random.uniform(key)


def test_a_full_disk_is_known_before_writing(tmp_path, monkeypatch):
    optimizer, tree = tree_on(MESHES[0])
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, tree, {"step": 1})
    checkpoints.wait()
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(RunError, match=r"disk full .* last good checkpoint is kept"):
        checkpoints.save(2, tree, {"step": 2})
    monkeypatch.undo()
    restored = Checkpoints(tmp_path / "c").restore(lambda record: abstract(optimizer, tree["params"]), fail)
    assert restored.record == {"step": 1}


def test_a_disk_that_fills_while_writing(tmp_path, monkeypatch):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        optimizer, tree = tree_on(MESHES[0])
        checkpoints = Checkpoints(folder / "c")
        checkpoints.save(1, tree, {"step": 1})
        checkpoints.wait()
        big = {"params": {"matrix": jnp.asarray(np.random.default_rng(0).standard_normal((2000, 500)), jnp.float32)}}
        monkeypatch.setattr(Checkpoints, "_check_space", lambda self, tree: None)
        with pytest.raises(RunError, match="disk full"):  # noqa: PT012 (the error may come from the background)
            checkpoints.save(2, big, {"step": 2})
            checkpoints.wait()
        restored = Checkpoints(folder / "c").restore(lambda record: abstract(optimizer, tree["params"]), fail)
        assert restored.record == {"step": 1}
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_another_versions_checkpoints_are_named():
    require_same_version({"version": VERSION}, "run = 'x'")
    with pytest.raises(RunError, match=r"run = 'x' was saved by another version of rljax .* None, expected .* --run"):
        require_same_version({"phase": "rl"}, "run = 'x'")
