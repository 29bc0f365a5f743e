import dataclasses
import time
from unittest import mock

import jax
import numpy as np
import pytest

from rljax import algorithms
from rljax.training.errors import RunError
from rljax.training.stages import needs_reference
from tests.training.in_process import train
from tests.training.subprocesses import metrics
from tests.training.tiny import config as tiny

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]
KL_START = dataclasses.replace(tiny.evaluation, kl_start=True)


def short(folder, data, steps, **more):
    likelihood = dataclasses.replace(tiny.likelihood, steps=0)
    task = dataclasses.replace(tiny.task, data_dir=data)
    return dataclasses.replace(tiny, run=folder, task=task, likelihood=likelihood, steps=steps, **more)


def test_a_run_keeps_no_copy_of_its_first_parameters_unless_something_needs_it(tmp_path, data):
    stage = train(short(tmp_path, data, 1))
    assert stage.reference is None
    assert "reference" not in stage.state_tree()
    assert stage.look() == {}
    assert train(short(tmp_path, data, 2)).reference is None
    with pytest.raises(RunError, match="was started without a copy of its first parameters, which `penalty`"):
        train(short(tmp_path, data, 3, evaluation=KL_START))


def test_a_resumed_run_measures_the_kl_from_the_same_parameters(tmp_path, data):
    first = train(short(tmp_path, data, 1, evaluation=KL_START))
    copy = jax.device_get(first.reference)
    again = train(short(tmp_path, data, 2, evaluation=KL_START))
    for ours, theirs in zip(*map(jax.tree.leaves, (again.reference, copy)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    moved = zip(*map(jax.tree.leaves, (again.state.params, copy)), strict=True)
    assert any(np.any(a != b) for a, b in moved)
    assert again.look()["kl_start"] > 0
    assert train(short(tmp_path, data, 3)).reference is None


def test_the_time_of_a_rollout_is_split(tmp_path, data):
    def slow(prompt, text, answer):
        time.sleep(0.002)
        return 0.0

    config = short(tmp_path, data, 2, algorithm=algorithms.remax())  # samples 8 · 4 and 8 greedy completions
    data = dataclasses.replace(config.task.load(), reward=slow)
    with mock.patch.object(type(config.task), "load", return_value=data):
        train(config)
    for row in metrics(tmp_path, "rl"):
        parts = [row[f"seconds_{part}"] for part in ("sampling", "verification", "learning")]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(row["seconds"])
        assert row["seconds_verification"] > 0.002 * 40
        assert 0.05 < row["peak_memory_gib"] < 64
        assert row["solved"] == 0


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({}, False),
        ({"evaluation": KL_START}, True),
        ({"penalty": lambda stats, batch: 0.0}, True),
        ({"algorithm": algorithms.ppo()}, False),
    ],
    ids=["nothing", "kl_start", "penalty", "ppo"],
)
def test_what_needs_the_first_parameters(change, needed):
    assert needs_reference(dataclasses.replace(tiny, **change)) == needed
