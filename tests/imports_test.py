import inspect
import subprocess
import sys
from functools import cache, partial

import rljax

HEAVY = ("flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "grain", "sentencepiece", "matplotlib", "tyro")


@cache
def modules_after(*packages: str) -> list[set[str]]:
    """Modules imported after each of the packages, which are imported in order in a new process."""
    steps = (f"import {package}; print(*sys.modules)" for package in packages)
    run = subprocess.run(
        [sys.executable, "-c", "; ".join(["import sys", *steps])], capture_output=True, text=True, check=True
    )
    return [{name.split(".")[0] for name in line.split()} for line in run.stdout.splitlines()]


def test_the_core_and_the_kernels_import_jax_and_jaxtyping_only():
    assert not modules_after("pallas_kernels", "rljax")[1] & set(HEAVY)


def test_the_kernels_know_nothing_of_rljax():
    kernels, core = modules_after("pallas_kernels", "rljax")
    assert "rljax" not in kernels
    assert "rljax" in core


def test_public_names_have_docstrings():
    assert set(rljax.__all__) == {
        "Batch", "Carried", "PolicyGradient", "Rollouts", "advantage", "advantages_of", "aggregation", "algorithms",
        "carried", "correction", "distillation", "divergence", "logprobs", "make_batch", "metrics", "penalty",
        "policy_loss", "ratio", "regression", "rewards", "schedule",
    }  # fmt: skip
    for module in filter(inspect.ismodule, map(partial(getattr, rljax), rljax.__all__)):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
