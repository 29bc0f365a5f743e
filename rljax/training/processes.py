"""One of several workers: joining them, and leaving together when asked to."""

import os
import signal
from pathlib import Path

import jax
from jax.experimental import multihost_utils


def join_workers() -> None:
    """Joins the other workers where there are any; a lone process goes on alone.

    Explicitly, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; by itself on a Cloud TPU host (where
    JAX asks the metadata) and under Slurm or Open MPI with several tasks. Must run before anything asks for devices.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        missing = [name for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name not in os.environ]
        if missing:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS = {address!r} is set but {' and '.join(missing)} is not: "
                             "each worker needs all three")  # fmt: skip
        jax.distributed.initialize(address, _integer("JAX_NUM_PROCESSES"), _integer("JAX_PROCESS_ID"))
    elif _tasks() > 1:
        jax.distributed.initialize()
    elif _on_tpu_host():
        try:
            jax.distributed.initialize()
        except ValueError as error:
            if "coordinator_address" not in str(error):
                raise
            print("TPU chips without a Cloud TPU's metadata: this process goes on alone", flush=True)


def _on_tpu_host(pci: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether a TPU is plugged in: a PCI device of Google's (vendor 0x1ae0) that is not its network card (0x0042)."""
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
    """The value of an environment variable, 1 if it is not set; raises ValueError if it is not an integer."""
    value = os.environ.get(variable, "1")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{variable} = {value!r}: expected an integer") from None


class Preemption:
    """Whether the run was asked to stop (SIGTERM), known to all workers at the same step."""

    def __init__(self):
        self._asked = False
        if jax.process_count() == 1:  # otherwise jax.distributed listens itself
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum, frame):
        self._asked = True

    @property
    def asked_alone(self) -> bool:
        """True at once in a lone process; workers have to agree on a step first."""
        return self._asked

    def asked(self, step: int) -> bool:
        """True from the first step at which every worker knows."""
        return self._asked if jax.process_count() == 1 else multihost_utils.reached_preemption_sync_point(step)
