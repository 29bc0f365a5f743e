import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rljax.training.report.metrics_log import FILE, MetricsLog, read, series


def test_what_is_written_is_read(tmp_path):
    with MetricsLog(tmp_path / "new") as log:
        log.write("likelihood", 0, {"loss": 1.5, "grad_norm": np.float32(0.25)})
        log.write("rl", np.int64(3), {"reward": jnp.float32(0.5)})
        log.write("eval", 3, {"accuracy": {"level 1": 1, "level é": 0.25}, "kl_start": 0.0})
        assert len(read(tmp_path / "new")) == 3  # before closing: a kill loses no row
    assert read(tmp_path / "new") == [
        {"phase": "likelihood", "step": 0, "loss": 1.5, "grad_norm": 0.25},
        {"phase": "rl", "step": 3, "reward": 0.5},
        {"phase": "eval", "step": 3, "accuracy": {"level 1": 1.0, "level é": 0.25}, "kl_start": 0.0},
    ]


def test_no_log_yet(tmp_path):
    assert read(tmp_path) == []


def test_not_finite_is_null_and_every_line_is_json(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("rl", 0, {"kl": float("nan"), "loss": float("-inf"), "reward": 1.0})

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    assert row == {"phase": "rl", "step": 0, "kl": None, "loss": None, "reward": 1.0}
    steps, values = series(read(tmp_path), "rl", "kl")
    assert steps.tolist() == [0.0]
    assert np.isnan(values).all()


def write_steps(folder, **keywords):
    with MetricsLog(folder, **keywords) as log:
        for n in range(4):
            log.write("likelihood", n, {"loss": float(n)})
        for n in range(6):
            log.write("rl", n, {"reward": float(n)})


def test_reopening_appends(tmp_path):
    write_steps(tmp_path)
    MetricsLog(tmp_path).close()
    write_steps(tmp_path)
    assert len(read(tmp_path)) == 20


def test_resuming_drops_the_steps_that_come_again(tmp_path):
    write_steps(tmp_path)
    with MetricsLog(tmp_path, resume_from={"rl": 4}) as log:
        log.write("rl", 4, {"reward": 40.0})
    steps, rewards = series(read(tmp_path), "rl", "reward")
    assert steps.tolist() == [0, 1, 2, 3, 4]
    assert rewards.tolist() == [0, 1, 2, 3, 40]
    assert len(series(read(tmp_path), "likelihood", "loss")[0]) == 4
    MetricsLog(tmp_path, resume_from={"likelihood": 2, "rl": 0}).close()
    assert [(row["phase"], row["step"]) for row in read(tmp_path)] == [("likelihood", 0), ("likelihood", 1)]


def test_a_kill_at_any_byte_costs_at_most_the_last_line(tmp_path):
    write_steps(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    rows = read(tmp_path)
    lines = whole.splitlines(keepends=True)
    start = len(whole) - len(lines[-1])
    for cut in range(start, len(whole) + 1):
        (tmp_path / FILE).write_bytes(whole[:cut])
        kept = rows if cut >= len(whole) - 1 else rows[:-1]  # a row without its newline is complete
        assert read(tmp_path) == kept
        with MetricsLog(tmp_path) as log:
            log.write("rl", 9, {"reward": 9.0})
        assert read(tmp_path) == [*kept, {"phase": "rl", "step": 9, "reward": 9.0}]


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / FILE).write_text('{"phase": "rl", "step": 0}\n{"phase": \n{"phase": "rl", "step": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read(tmp_path)
    (tmp_path / FILE).write_text('{"step": 0}\n{"phase": "rl", "step": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        read(tmp_path)


def test_a_failing_rewrite_leaves_the_log(tmp_path, monkeypatch):
    write_steps(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        MetricsLog(tmp_path, resume_from={"rl": 1})
    assert (tmp_path / FILE).read_bytes() == before


def test_a_metric_that_is_not_a_number_or_named_step_is_refused(tmp_path):
    with MetricsLog(tmp_path) as log:
        with pytest.raises(TypeError, match=r"metrics\['reward'\] = 'high'"):
            log.write("rl", 0, {"reward": "high"})
        with pytest.raises(ValueError, match="step"):
            log.write("rl", 0, {"step": 1.0})
    assert read(tmp_path) == []


def test_tensorboard_gets_every_number_under_its_stage(tmp_path):
    pytest.importorskip("tensorboardX")
    write_steps(tmp_path, tensorboard=True)
    with MetricsLog(tmp_path, tensorboard=True, resume_from={"rl": 4}) as log:
        log.write("rl", 4, {"reward": float("nan"), "kl": 0.5})
        log.write("eval", 4, {"accuracy": {"level 1": 0.5}})
    files = {path.parent.name for path in (tmp_path / "tensorboard").rglob("events*")}
    assert files == {"eval", "likelihood", "rl"}
    assert b"accuracy/level_1" in next((tmp_path / "tensorboard" / "eval").iterdir()).read_bytes()


def test_missing_tensorboard_names_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="extra `tb`"):
        MetricsLog(tmp_path, tensorboard=True)
    MetricsLog(tmp_path).close()
