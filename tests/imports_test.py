"""The core can be imported into any JAX code base: it brings in no framework."""

import inspect
import subprocess
import sys
from functools import partial

import rljax

HEAVY = ("flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "grain", "sentencepiece", "matplotlib", "tyro")


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_the_core_and_the_kernels_import_jax_and_jaxtyping_only():
    assert not modules_after("import rljax, pallas_kernels") & set(HEAVY)


def test_the_kernels_know_nothing_of_rljax():
    assert "rljax" not in modules_after("import pallas_kernels")


def test_public_names_have_docstrings():
    assert set(rljax.__all__) == {
        "Batch", "PolicyGradient", "Rollouts", "advantage", "aggregation", "algorithms", "correction", "distillation",
        "divergence", "metrics", "penalty", "policy_loss", "ratio", "rewards", "schedule",
    }  # fmt: skip
    for module in filter(inspect.ismodule, map(partial(getattr, rljax), rljax.__all__)):
        for name in module.__all__:
            assert getattr(module, name).__doc__, name
