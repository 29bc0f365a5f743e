"""Helpers that start, watch and read real training processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.quick import QUICK_TO_COMPILE

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests/training/tiny.py"


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def start(run: Path, *overrides: str, recipe: Path = TINY, devices: int = 1, **more: str) -> subprocess.Popen:
    """Starts `python launch/tpu_train.py recipe --run run …` in the parent folder of `run`."""
    command = [sys.executable, str(ROOT / "launch/tpu_train.py"), str(recipe), "--run", str(run), *overrides]
    return subprocess.Popen(
        command,
        env=environment(devices, **more),
        cwd=run.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum('"phase": "likelihood"' in line or '"phase": "rl"' in line for line in lines)


def wait_for_steps(process: subprocess.Popen, run: Path, steps: int, timeout: float = 240) -> None:
    """Waits until `steps` steps are logged; fails if the process ends earlier."""
    deadline = time.monotonic() + timeout
    while steps_logged(run) < steps:
        assert process.poll() is None, f"ended before step {steps}:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no step {steps} within {timeout} s"
        time.sleep(0.02)


def metrics(run: Path, phase: str) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]
