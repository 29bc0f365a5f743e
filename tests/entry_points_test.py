"""The commands configure malloc to keep freed memory, but only in CPU runs without other malloc settings."""

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rljax import _entry_points
from tools.imports import ROOT

FAULTS = """
import ctypes, resource, threading
from rljax._entry_points import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]

def temporaries():
    block = libc.malloc(SIZE)
    libc.memset(block, 1, SIZE)
    libc.free(block)

def step():  # XLA allocates on its own threads
    thread = threading.Thread(target=temporaries)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

first = step()
print(step() - first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tests glibc's malloc")
def test_freed_memory_is_reused_by_the_next_step():
    """256 MiB are 65536 pages of 4 KiB or 128 pages of 2 MiB; a new thread faults a few pages of its own."""
    code = FAULTS.replace("SIZE", str(2**28))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env={"JAX_PLATFORMS": "cpu"}
    )
    assert int(done.stdout) < 64


def calls(monkeypatch, *, environment=(), libc="glibc", devices=()) -> dict[int, int]:
    given = {}
    monkeypatch.setattr(_entry_points.os, "environ", dict.fromkeys(environment, "cpu"))
    monkeypatch.setattr(_entry_points.os.path, "exists", lambda path: path in devices)
    monkeypatch.setattr(_entry_points.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=given.__setitem__))
    _entry_points.keep_freed_memory()
    return given


ALL = {-8: 1, -4: 0, -1: 2**31 - 1}


@pytest.mark.parametrize(("case", "expected"), [
    ({}, ALL),
    ({"devices": ("/dev/accel0",)}, {}),
    ({"devices": ("/dev/nvidiactl",)}, {}),
    ({"devices": ("/dev/accel0",), "environment": ("JAX_PLATFORMS",)}, ALL),
    ({"environment": ("MALLOC_ARENA_MAX",)}, {}),
    ({"environment": ("GLIBC_TUNABLES",)}, {}),
    ({"environment": ("PATH",)}, ALL),
    ({"libc": ""}, {}),
], ids=str)  # fmt: skip
def test_malloc_is_configured_only_for_unconfigured_cpu_processes(monkeypatch, case, expected):
    assert calls(monkeypatch, **case) == expected
