"""Processes of a multi-host run: joining them at the start and stopping them at the same step."""

import os
import signal
from pathlib import Path

import jax
from jax.experimental import multihost_utils


def join_workers() -> None:
    """Calls `jax.distributed.initialize` if the run has several processes, before JAX initializes devices.

    The processes are set by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment. If these
    are absent, JAX detects the processes on Cloud TPU hosts, and under Slurm or Open MPI with more than one task.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in os.environ]
        if missing:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r}: expected {' and '.join(missing)} to be set too, "
                             "on every process")  # fmt: skip
        jax.distributed.initialize(address, _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID"))
    elif _tasks() > 1:
        jax.distributed.initialize()
    elif _on_tpu_host():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
            print("TPU chips found, but no Cloud TPU metadata: running as a single process", flush=True)


def _on_tpu_host(pci: Path = Path("/sys/bus/pci/devices")) -> bool:
    """True if a PCI device has Google's vendor id 0x1ae0 and is not Google's network card, device id 0x0042."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return False
    return any(
        _read(device / "vendor") == "0x1ae0" and _read(device / "device") != "0x0042" for device in pci.glob("*")
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _tasks() -> int:
    return max(_integer(name) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _integer(variable: str) -> int:
    value = os.environ.get(variable, "1")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{variable} = {value!r}: expected an integer") from None


class Preemption:
    """Handling of SIGTERM: all processes of a run stop at the same step."""

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:  # with several processes jax.distributed handles SIGTERM
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum, frame):
        self._asked = True

    @property
    def asked_alone(self) -> bool:
        """True if a single-process run received SIGTERM; False with several processes, which stop only at a step."""
        return self._asked

    def asked(self, step: int) -> bool:
        """True if the run must stop at `step`; equal on every process."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
