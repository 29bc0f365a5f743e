"""The examples that run in the project's environment, as subprocesses: their rewards rise."""

import os
import re
import subprocess
import sys

import pytest

from tests.quick import QUICK_TO_COMPILE
from tools.imports import ROOT

NUMBER = r"(\d\.\d+(?:e-\d+)?)"
FLAGS = f"{QUICK_TO_COMPILE} --xla_backend_optimization_level=1"  # compile time is as long as run time


def output(example: str) -> str:
    env = os.environ | {"XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, ROOT / "examples" / example], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("example", ["bare_jax.py", pytest.param("linen_shard_map.py", marks=pytest.mark.slow)])
def test_it_learns(example):
    shown = output(example)
    found = re.search(f"reward before {NUMBER}, after {NUMBER}", shown)
    assert found, shown
    before, after = map(float, found.groups())
    assert before < 0.2
    assert after > 0.95
    if example == "linen_shard_map.py":
        found = re.search(f"to {NUMBER} of its largest entry", shown)
        assert found, shown
        assert float(found[1]) < 1e-5
        assert "on 8 devices" in shown
