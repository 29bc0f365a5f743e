"""Real training processes for the tests: started, watched, killed."""

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
    """A clean environment for a process with so many simulated devices."""
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
    """`python launch/tpu_train.py recipe --run run …`, its data beside the run's folder."""
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
    """(exit code, output) of a process that is waited for."""
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def steps_logged(run: Path) -> int:
    """Training steps that the run's metrics hold at this moment."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return sum('"phase": "likelihood"' in line or '"phase": "rl"' in line for line in lines)


def wait_for_steps(process: subprocess.Popen, run: Path, steps: int, timeout: float = 240) -> None:
    """Returns when so many steps are logged; fails where the process ends before."""
    deadline = time.monotonic() + timeout
    while steps_logged(run) < steps:
        assert process.poll() is None, f"ended before step {steps}:\n{process.communicate()[0]}"
        assert time.monotonic() < deadline, f"no step {steps} within {timeout} s"
        time.sleep(0.02)


def metrics(run: Path, phase: str) -> list[dict]:
    """The run's metrics of one phase."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == phase]
