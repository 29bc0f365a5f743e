"""Runs that are killed, stopped by SIGTERM or moved to another mesh resume exactly where they were."""

import dataclasses
import json
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

from rljax.training import commands
from rljax.training.report.monitor import Monitor
from tests.training import tiny
from tests.training.in_process import call, train
from tests.training.subprocesses import TINY, finish, metrics, start, steps_logged, wait_for_steps

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]
STEPS = 12 + 6  # of the tiny recipe: optimizer steps of stage 1, and rollouts of stage 2


def final_params(run):
    folder = run / "checkpoints"
    newest = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    with ocp.PyTreeCheckpointer() as checkpointer:
        return named(checkpointer.restore(folder / str(newest) / "state")["params"])


def named(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same_run(run, other):
    """Asserts bit-identical parameters, and equal losses and rewards at every step."""
    ours, theirs = final_params(run), final_params(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    for phase in ("likelihood", "rl"):
        assert [row["loss"] for row in metrics(run, phase)] == [row["loss"] for row in metrics(other, phase)]
    assert [row["reward"] for row in metrics(run, "rl")] == [row["reward"] for row in metrics(other, "rl")]
    assert all(row["grad_norm"] > 1e-3 for row in metrics(run, "rl"))


@pytest.mark.parametrize("kills", [(13,), pytest.param((3, 6, 9, 12, 15), marks=pytest.mark.slow)], ids=len)
def test_a_run_goes_on_bit_for_bit_after_kills_at_random_moments(kills, tmp_path, data):
    """Kills the process up to 0.4 s after each of the given numbers of steps was logged."""
    task = ("--task.data-dir", str(data))
    undisturbed, run, chance = tmp_path / "undisturbed", tmp_path / "run", random.Random(time.time_ns())
    code, output = finish(start(undisturbed, *task))
    assert code == 0, output
    assert steps_logged(undisturbed) == STEPS
    for steps in kills:
        process = start(run, *task)
        wait_for_steps(process, run, steps)
        time.sleep(chance.uniform(0, 0.4))
        process.kill()
        process.communicate()
    code, output = finish(start(run, *task))
    assert code == 0, output
    assert "resuming from" in output
    assert_same_run(run, undisturbed)


def start_two(run, *overrides):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    return [start(run, *overrides, devices=2, JAX_PROCESS_ID=str(i), **joined) for i in range(2)]


@pytest.mark.slow
def test_two_workers_train_as_one(undisturbed, tmp_path):
    run = tmp_path / "run"
    for worker in start_two(run):
        code, output = finish(worker)
        assert code == 0, output
    here, there = metrics(run, "likelihood"), metrics(undisturbed, "likelihood")
    assert [row["step"] for row in here] == list(range(12))
    np.testing.assert_allclose([row["loss"] for row in here], [row["loss"] for row in there], rtol=1e-3)
    first, second = metrics(run, "rl")[0], metrics(undisturbed, "rl")[0]
    np.testing.assert_allclose(first["grad_norm"], second["grad_norm"], rtol=1e-2)
    assert (run / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_sigterm_to_one_of_two_workers_stops_both_at_one_step(tmp_path):
    run = tmp_path / "run"
    workers = start_two(run, "--checkpoint-every", "0", "--likelihood.steps", "500")
    wait_for_steps(workers[0], run, 3)
    workers[1].send_signal(signal.SIGTERM)
    codes, outputs = zip(*map(finish, workers), strict=True)
    assert codes == (143, 143), outputs
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert 3 <= saved < 500
    assert f"received SIGTERM: checkpoint saved at likelihood step {saved}" in outputs[0]
    assert steps_logged(run) == saved
    workers = start_two(run, "--likelihood.steps", "500")
    wait_for_steps(workers[0], run, saved + 1)
    for worker in workers:
        worker.kill()
    outputs = [worker.communicate()[0] for worker in workers]
    assert f"resuming from likelihood step {saved}" in outputs[0]


def run_tiny(run, data, *overrides, devices=1):
    run.parent.mkdir(exist_ok=True)
    return call(
        commands.train, TINY, "--run", run, "--task.data-dir", data, *overrides, cwd=run.parent, devices=devices
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    code, output = run_tiny(run, data)
    assert code == 0, output
    assert steps_logged(run) == STEPS
    return run


def sigterm_after(monkeypatch, method, condition):
    """Sends SIGTERM to this process after a call of the monitor's method whose arguments meet the condition."""
    original = getattr(Monitor, method)

    def called(self, *arguments):
        original(self, *arguments)
        if condition(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Monitor, method, called)


def test_sigterm_saves_before_it_leaves(undisturbed, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        sigterm_after(patch, "step", lambda stage, step, metrics: (stage, step) == ("rl", 2))
        code, output = run_tiny(run, data, "--checkpoint-every", "0")
    assert code == 143, output
    assert "received SIGTERM: checkpoint saved at rl step 3" in output
    assert "stopped: checkpoint saved at rl step 3" in (run / "report.html").read_text()
    code, output = run_tiny(run, data)
    assert code == 0, output
    assert "resuming from rl step 3" in output
    assert_same_run(run, undisturbed)


def test_sigterm_while_evaluating_leaves_at_once_and_loses_nothing(undisturbed, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        sigterm_after(patch, "say", lambda text: text == "evaluating after RL")
        code, output = run_tiny(run, data)
    assert code == 143, output
    assert "evaluation after RL was interrupted; all training steps are saved" in output
    assert not (run / "finished.json").exists()
    code, output = run_tiny(run, data)
    assert code == 0, output
    assert_same_run(run, undisturbed)


def test_a_run_goes_on_on_another_mesh(undisturbed, data, tmp_path):
    run = tmp_path / "run"
    code, output = run_tiny(run, data, "--steps", 2)
    assert code == 0, output
    mesh = ("--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2)
    code, output = run_tiny(run, data, *mesh, devices=8)
    assert code == 0, output
    assert "resuming from rl step 2" in output
    here, there = metrics(run, "rl"), metrics(undisturbed, "rl")
    assert [row["step"] for row in here] == list(range(6))
    np.testing.assert_allclose(here[2]["loss"], there[2]["loss"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(here[2]["grad_norm"], there[2]["grad_norm"], rtol=1e-3)


def test_a_finished_run_reports_that_it_is_finished(undisturbed, data):
    code, output = run_tiny(undisturbed, data)
    assert code == 0
    assert "finished" in output
    assert "--run" in output
    assert steps_logged(undisturbed) == STEPS


def test_a_run_resumes_from_the_checkpoint_before_a_corrupt_one(undisturbed, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    os.remove(run / "finished.json")
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name) if path.name.isdigit() else -1)
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, output = run_tiny(run, data)
    assert code == 0, output
    assert f"checkpoint {newest.name} in" in output
    assert "is damaged: record/" in output
    assert "resuming from rl step 5" in output
    assert_same_run(run, undisturbed)


def test_a_flipped_bit_is_reported_and_the_previous_checkpoint_is_used(undisturbed, data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    os.remove(run / "finished.json")
    arrays = max((run / "checkpoints/19/state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 4
    arrays.write_bytes(content)
    name = arrays.relative_to(run / "checkpoints/19")
    said = f"checkpoint 19 in {run / 'checkpoints'} is damaged: {name} has changed since it was written; going back to"
    code, output = call(commands.evaluate, run, "--task.data-dir", data, cwd=tmp_path)
    assert code == 0, output
    assert f"{said} checkpoint 18" in output.replace("\n", "")
    assert json.loads((run / "evaluation.json").read_text())["step"] == 5
    code, output = run_tiny(run, data)
    assert code == 0, output
    assert f"{said} checkpoint 18" in output.replace("\n", "")
    assert "resuming from rl step 5" in output
    assert (run / "corrupt-checkpoints-19").is_dir()
    assert_same_run(run, undisturbed)


def test_every_nth_checkpoints_parameters_are_kept_for_good(undisturbed, data, tmp_path):
    """Also after a kill between a checkpoint and its copy. Checkpoint numbers increase through both stages."""
    run = tmp_path / "run"
    code, output = run_tiny(run, data, "--keep-every", "2", "--steps", 2)
    assert code == 0, output
    assert kept_numbers(run) == [13, 15]
    shutil.rmtree(run / "history" / "15")
    os.remove(run / "finished.json")
    code, output = run_tiny(run, data, "--keep-every", "2")
    assert code == 0, output
    assert kept_numbers(run) == [13, 15, 17, 19]
    assert_same_run(run, undisturbed)
    with ocp.PyTreeCheckpointer() as checkpointer:
        trees = {n: checkpointer.restore(run / "history" / str(n) / "state") for n in kept_numbers(run)}
        start = checkpointer.restore(run / "stage1" / "0" / "state")
    assert {frozenset(tree) for tree in trees.values()} == {frozenset(["params"])}
    for name, kept in (("start", trees[13]), ("end", trees[19])):
        wanted = named(start["params"]) if name == "start" else final_params(run)
        assert named(kept["params"]).keys() == wanted.keys()
        for path, value in named(kept["params"]).items():
            np.testing.assert_array_equal(value, wanted[path], err_msg=f"{name} {path}")
    assert any((a != b).any() for a, b in zip(named(trees[15]).values(), named(trees[17]).values(), strict=True))

    for kept in ("checkpoints", "stage1"):  # starts the run from the beginning
        shutil.rmtree(run / kept)
    os.remove(run / "finished.json")
    code, output = run_tiny(run, data, "--keep-every", "1", "--steps", 1)
    assert code == 0, output
    assert kept_numbers(run) == [10, 13, 14]  # the earlier run's are deleted


def test_a_run_goes_on_bit_for_bit_around_the_end_of_an_epoch(data, tmp_path):
    """Two rollouts use all 16 prompts; stops one rollout before, at and one after the end of the second epoch."""
    task = dataclasses.replace(tiny.config.task, prompts=16, data_dir=data)
    likelihood = dataclasses.replace(tiny.config.likelihood, steps=0)
    config = dataclasses.replace(tiny.config, task=task, likelihood=likelihood, steps=7)
    whole = train(dataclasses.replace(config, run=tmp_path / "whole"))
    assert len(whole.parts.data.prompts) == 2 * config.rollout.prompts
    run = tmp_path / "run"
    for steps in (3, 4, 5, 7):
        train(dataclasses.replace(config, run=run, steps=steps))
    assert steps_logged(run) == 7
    assert_same_run(run, tmp_path / "whole")


def kept_numbers(run):
    return sorted(int(path.name) for path in (run / "history").iterdir() if path.name.isdigit())
