"""Every test sees 8 simulated devices, strict promotion, and a compilation cache."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Quick to compile, which takes longer than to run what tests run.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(autouse=True)
def _strict_dtype_promotion(request):
    """A silent float64 or int promotion is a defect; Flax and Optax themselves rely on the standard rules."""
    with jax.numpy_dtype_promotion("standard" if request.node.get_closest_marker("standard_promotion") else "strict"):
        yield
