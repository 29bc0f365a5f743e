"""Whole runs in real processes: killed, asked to stop, moved to another mesh, divided over workers."""

import os
import random
import shutil
import signal
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.training.processes import finish, metrics, start, steps_logged, wait_for_steps

pytestmark = pytest.mark.filterwarnings("ignore:Sharding info not provided")  # the arrays are read as they lie
STEPS = 12 + 6  # of the tiny recipe: likelihood, then rollouts


def final_params(run):
    """The newest checkpoint's parameters, as NumPy arrays by path."""
    folder = run / "checkpoints"
    newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder / str(newest) / "state")
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree["params"])
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = finish(start(run))
    assert code == 0, output
    assert steps_logged(run) == STEPS
    return run


def assert_same_run(run, other):
    """Bit-identical parameters, and the same losses and rewards at every step."""
    ours, theirs = final_params(run), final_params(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    for phase in ("likelihood", "rl"):
        assert [row["loss"] for row in metrics(run, phase)] == [row["loss"] for row in metrics(other, phase)]
    assert [row["reward"] for row in metrics(run, "rl")] == [row["reward"] for row in metrics(other, "rl")]


def test_a_run_goes_on_bit_for_bit_after_kills_at_random_moments(uninterrupted, tmp_path):
    run, chance = tmp_path / "run", random.Random(time.time_ns())
    for kill in range(5):
        process = start(run)
        wait_for_steps(process, run, min(3 * (kill + 1), STEPS - 2))
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
    code, output = finish(start(run))
    assert code == 0, output
    assert "going on from" in output
    assert_same_run(run, uninterrupted)


def test_sigterm_saves_before_it_leaves(uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(run, "--checkpoint-every", "0")
    wait_for_steps(process, run, 12 + 3)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143, output
    assert "asked to stop: saved at rl step" in output
    assert "stopped, saved at rl step" in (run / "report.html").read_text()
    code, output = finish(start(run))
    assert code == 0, output
    assert "going on from rl step 0" not in output
    assert_same_run(run, uninterrupted)


def test_sigterm_while_evaluating_leaves_at_once_and_loses_nothing(uninterrupted, tmp_path):
    run = tmp_path / "run"
    process = start(run, "--evaluation.samples", "64")  # long enough to be met
    wait_for_steps(process, run, STEPS)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 143, output
    assert "while evaluating after RL; what was trained is saved" in output
    assert not (run / "finished.json").exists()
    code, output = finish(start(run))
    assert code == 0, output
    assert_same_run(run, uninterrupted)


def test_a_run_goes_on_on_another_mesh(uninterrupted, tmp_path):
    run = tmp_path / "run"
    code, output = finish(start(run, "--steps", "2"))
    assert code == 0, output
    code, output = finish(start(run, "--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2", devices=8))
    assert code == 0, output
    assert "going on from rl step 2" in output
    here, there = metrics(run, "rl"), metrics(uninterrupted, "rl")
    assert [row["step"] for row in here] == list(range(6))
    np.testing.assert_allclose(here[2]["loss"], there[2]["loss"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(here[2]["grad_norm"], there[2]["grad_norm"], rtol=1e-3)


def start_two(run, *overrides):
    """Two workers of two devices each, which find each other by the environment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(run, *overrides, devices=2, JAX_PROCESS_ID=str(i), **joined) for i in range(2)]


def test_two_workers_train_as_one(uninterrupted, tmp_path):
    run = tmp_path / "run"
    for worker in start_two(run):
        code, output = finish(worker)
        assert code == 0, output
    here, there = metrics(run, "likelihood"), metrics(uninterrupted, "likelihood")
    assert [row["step"] for row in here] == list(range(12))
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=1e-3)
    first, second = metrics(run, "rl")[0], metrics(uninterrupted, "rl")[0]
    np.testing.assert_allclose(first["grad_norm"], second["grad_norm"], rtol=1e-2)
    assert (run / "report.html").stat().st_size > 10_000


def test_sigterm_to_one_of_two_workers_stops_both_at_one_step(tmp_path):
    run = tmp_path / "run"
    workers = start_two(run, "--checkpoint-every", "0", "--likelihood.steps", "500")
    wait_for_steps(workers[0], run, 3)
    workers[1].send_signal(signal.SIGTERM)
    codes, outputs = zip(*map(finish, workers), strict=True)
    assert codes == (143, 143), outputs
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert 3 <= saved < 500
    assert f"asked to stop: saved at likelihood step {saved}" in outputs[0]
    assert steps_logged(run) == saved
    workers = start_two(run, "--likelihood.steps", "500")
    wait_for_steps(workers[0], run, saved + 1)
    for worker in workers:
        worker.kill()
    outputs = [worker.communicate()[0] for worker in workers]
    assert f"going on from likelihood step {saved}" in outputs[0]


def test_a_finished_run_says_so(uninterrupted):
    code, output = finish(start(uninterrupted))
    assert code == 0
    assert "finished" in output
    assert "--run" in output
    assert steps_logged(uninterrupted) == STEPS


def test_a_corrupt_checkpoint_gives_way_to_the_one_before(uninterrupted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    os.remove(run / "finished.json")
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    for path in (newest / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, output = finish(start(run))
    assert code == 0, output
    assert f"checkpoint {newest.name} in" in output
    assert "cannot be read" in output
    assert "going on from rl step 5" in output
    assert_same_run(run, uninterrupted)
