"""Peak memory of a run."""

import re
import resource
import sys
from pathlib import Path

import jax

_STATUS = Path("/proc/self/status")


def peak_memory_gib() -> float:
    """The largest peak of this process's devices in GiB, or of the process itself if a device does not report one.

    The memory of a device is the `peak_bytes_in_use` of `jax.Device.memory_stats`, which GPUs and TPUs report. That of
    the process, the maximum resident set, is the memory of CPU devices. On Linux it is read from /proc, because the
    maximum of `getrusage` includes that of the process which started this one.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in found for found in stats):
        return max(found["peak_bytes_in_use"] for found in stats) / 2**30
    if _STATUS.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"))):
        return int(peak[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
