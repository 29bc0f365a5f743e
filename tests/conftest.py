"""Test settings: 8 simulated devices, strict dtype promotion, quick compilation and a cost report."""

import ctypes
import gc
import os
import pathlib
import resource
import sys

from tests.quick import QUICK_TO_COMPILE

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

gc.set_threshold(200_000, 20, 50)  # collect rarely: tracing creates many long-lived objects
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

pytest_plugins = ["tests.cost"]


@pytest.fixture(autouse=True)
def _strict_dtype_promotion(request):
    """Makes silent promotion an error, except in tests that run Flax or Optax code (`standard_promotion`)."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("standard_promotion") else "strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _memory_of_a_file_is_returned():
    yield
    drop_programs()


@pytest.fixture(autouse=True)
def _memory_is_bounded():
    """Frees compiled programs within a file when the process exceeds 1.4 GB."""
    yield
    if resident_gigabytes() > 1.4:
        drop_programs()


def resident_gigabytes() -> float:
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e9 if statm.exists() else 0.0


def drop_programs():
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
