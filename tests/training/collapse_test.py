import dataclasses
import math
import re
from pathlib import Path

import jax
import pytest

from rljax import algorithms
from rljax.models import initialize
from rljax.training.components import make_components
from rljax.training.report import memory
from rljax.training.report.collapse import collapses
from rljax.training.report.memory import peak_memory_gib
from rljax.training.report.monitor import Monitor
from rljax.training.report.page import write_report
from rljax.training.stages import PolicyStage
from tests.models.bigram import BigramConfig
from tests.training import fake_run
from tests.training.in_process import on_devices
from tests.training.tiny import config as tiny


def rollouts(*values):
    """Rows of stage 2 from (entropy, share of groups with a signal, share of solved completions), five of each."""
    return [dict(zip(("entropy", "informative", "solved"), value, strict=True)) for value in values for _ in range(5)]


START = (0.6, 0.5, 0.2)


@pytest.mark.parametrize(
    ("last", "names"),
    [
        ((0.07, 0.2, 0.5), []),
        ((0.05, 0.2, 0.5), ["entropy"]),
        ((0.5, 0.04, 0.5), ["informative"]),
        ((0.05, 0.0, 0.89), ["entropy", "informative"]),
        ((0.05, 0.0, 0.91), []),  # solved
        ((math.nan, 0.2, 0.5), []),
    ],
    ids=str,
)
def test_a_collapse_is_a_fall_to_a_tenth_of_the_first_rollouts_unless_the_task_is_solved(last, names):
    assert list(collapses(rollouts(START, (0.3, 0.3, 0.4), last))) == names
    assert collapses(rollouts(START, last)[:9]) == {}  # too early
    missing = [{name: x for name, x in row.items() if name != "entropy"} for row in rollouts(START, last)]
    assert "entropy" not in collapses(missing)


def test_a_signal_that_was_always_rare_is_told():
    (warning,) = collapses(rollouts((0.6, 0.02, 0.0), (0.6, 0.01, 0.0))).values()
    assert "only 1.0% of the groups have a signal (mean of the last 5 rollouts; 2.0% in the first 5)" in warning


def test_a_single_completion_per_prompt_has_no_group_with_a_signal(data):
    rollout = dataclasses.replace(tiny.rollout, completions=1)
    task = dataclasses.replace(tiny.task, data_dir=data)
    config = dataclasses.replace(tiny, task=task, model=BigramConfig(), rollout=rollout, reward_map=None,
                                 algorithm=algorithms.reinforce_plus_plus())  # fmt: skip
    with on_devices(1):
        stage = PolicyStage(config, parts := make_components(config))
    stage.begin(initialize(parts.model, parts.mesh, jax.random.key(0)))
    row, _ = stage.step(0, jax.random.key(0))
    assert "reward" in row
    assert collapses([row] * 10) == {}


def test_a_collapse_is_said_once_and_again_after_resuming(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Monitor, "say", lambda monitor, text: said.append(text))
    config = dataclasses.replace(tiny, run=tmp_path, steps=40)
    rows = rollouts(START, (0.3, 0.3, 0.4), (0.01, 0.3, 0.4), (0.01, 0.3, 0.4))
    with Monitor(config, None) as monitor:
        monitor.begin()
        for n, row in enumerate(rows[:18]):
            monitor.step("rl", n, row)
    assert len(said) == 1
    assert said[0].startswith("warning: the entropy has collapsed from 0.6 to 0.01")
    with Monitor(config, None) as monitor:
        monitor.resume("rl", 18)
        monitor.step("rl", 18, rows[18])
    assert len(said) == 2
    assert said[1].startswith("warning: the entropy has collapsed from 0.6 to 0.01")


def test_the_report_shows_warnings_times_and_memory(tmp_path):
    data = fake_run.everything()
    whole = write_report(tmp_path / "a", **data).read_text()
    assert "Warning" not in whole
    assert "Time per rollout" in whole
    assert "sampling 58%, verification 5%, learning 38%" in whole
    assert "peak memory 1.68 GiB</dd>" in whole
    assert "Best constant strategies: always &#x27;a b&#x27; (level 1, level 2" in whole
    assert "Best constant strategy, always &#x27;a b&#x27;: 11.7% [" in whole
    for row in data["metrics"][-30:]:
        row["entropy"] = 0.001
    assert "<b>Warning</b> The entropy has collapsed from" in write_report(tmp_path / "b", **data).read_text()
    new = ("seconds_sampling", "seconds_verification", "seconds_learning", "peak_memory_gib", "solved")
    data["metrics"] = [{name: x for name, x in row.items() if name not in new} for row in data["metrics"]]
    plain = write_report(tmp_path / "c", **data).read_text()
    assert "Time per rollout" not in plain
    assert "peak memory" not in plain


def test_peak_memory_is_the_devices_or_the_processs(tmp_path, monkeypatch):
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found
        with monkeypatch.context() as patch:  # a process inherits this maximum from the process that started it
            patch.setattr(memory.resource, "getrusage", None)
            assert peak_memory_gib() == pytest.approx(int(found[1]) / 2**20, rel=0.1)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert 0.05 < peak_memory_gib() < 64

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(memory.jax, "local_devices", lambda: [Device(2**30), Device(3 * 2**30)])
    assert peak_memory_gib() == 3
