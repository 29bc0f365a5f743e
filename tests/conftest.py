"""Settings of every test: 8 simulated devices, strict promotion, quick compilation, and a report of what it cost."""

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

gc.set_threshold(200_000, 20, 50)  # tracing makes many objects that stay; to walk them more often takes 10 % longer
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

pytest_plugins = ["tests.cost"]


@pytest.fixture(autouse=True)
def _strict_dtype_promotion(request):
    """A silent float64 or int promotion is a defect; Flax and Optax themselves rely on the standard rules."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("standard_promotion") else "strict"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _memory_of_a_file_is_returned():
    """Compiled programs are dropped at the end of each file: otherwise they add up to gigabytes."""
    yield
    drop_programs()


@pytest.fixture(autouse=True)
def _memory_is_bounded():
    """And within a file once a process has grown to 1.4 GB, as by the thousand small programs of doctests."""
    yield
    if resident_gigabytes() > 1.4:
        drop_programs()


def resident_gigabytes() -> float:
    """Memory of this process now; 0 if the system does not say."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e9 if statm.exists() else 0.0


def drop_programs():
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # glibc would keep it
