"""Entry points of the commands, such as `rljax-train`, and of the scripts in `launch`."""

import ctypes
import os
import platform
import sys
from types import ModuleType


def train() -> None:
    """`rljax-train [RECIPE] [--field value …]`: trains from a recipe, or continues its run."""
    keep_freed_memory()
    _commands().train()


def evaluate() -> None:
    """`rljax-evaluate RUN [--field value …]`: evaluates a run's newest checkpoint on the held-out problems."""
    keep_freed_memory()
    _commands().evaluate()


def export() -> None:
    """`rljax-export RUN --out FOLDER [--dtype DTYPE]`: writes a run's newest parameters as a Hugging Face folder."""
    keep_freed_memory()
    _commands().export()


def chat() -> None:
    """`rljax-chat FOLDER_OR_RUN [--option value …]`: talks to a model in the terminal."""
    keep_freed_memory()
    _commands().chat()


def _commands() -> ModuleType:
    """The trainer's commands; exits with a one-line error if the packages of the extra `train` are missing."""
    try:
        from rljax.training import commands
    except ImportError as error:
        if error.name != "rljax.training":
            raise
        sys.exit(f"error: {error}")
    return commands


_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1  # from glibc's malloc.h
_ACCELERATORS = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidiactl")


def keep_freed_memory() -> None:
    """Makes this process keep the host memory that it frees, if it computes on a CPU.

    XLA allocates the temporaries of each step anew, and by default glibc maps and unmaps them, so the kernel zeroes
    their pages in every step (docs/benchmarks.md). We set one arena because XLA allocates on worker threads and only
    the main arena grows without mapping. Nothing is set with another C library or if the environment configures malloc.
    """
    configured = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    computes_on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(os.path.exists, _ACCELERATORS))
    if configured or not computes_on_cpu or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
