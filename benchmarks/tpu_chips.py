"""TPU generations, and compilation for them with libtpu on a machine without a TPU."""

import os
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Otherwise libtpu queries a metadata server, locks out other processes, and caches programs that it cannot read back.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}


class Chip(NamedTuple):
    """One jax device of a TPU generation; rates are from its public specification."""

    name: str
    topology: str  # the smallest topology of one host with four chips
    flops: float  # per second, in bfloat16
    bandwidth: float  # of HBM, in bytes per second
    cores: int  # TensorCores per device
    cycle_flops: int  # operations of one core's matrix units per cycle, as in the compiler's schedules

    @property
    def clock(self) -> float:
        """Cycles per second: 1.50, 1.75, 1.75 and 2.20 GHz."""
        return self.flops / (self.cores * self.cycle_flops)


SMALL = 4 * 128 * 128 * 2  # four units with one row per cycle each: 16 rows of bfloat16 take 16 cycles in the schedules
LARGE = 2 * 256 * 256 * 2 * 2  # two units with two rows per cycle each: 16 rows take 8 cycles

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", "v5e:2x2", 197e12, 819e9, 1, SMALL),
        Chip("v5p", "v5p:2x2x1", 459e12, 2765e9, 2, SMALL),
        Chip("v6e", "v6e:2x2", 918e12, 1640e9, 1, LARGE),
        Chip("tpu7x", "tpu7x:2x2x1", 2307e12 / 2, 7380e9 / 2, 1, LARGE),  # one of a chip's two cores
    )
}


def has_libtpu() -> bool:
    return find_spec("libtpu") is not None


def with_environment() -> None:
    """Restarts this program with ENVIRONMENT unless it is set; it must be set before jax is imported."""
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)


@cache
def devices(chip: Chip):
    """The devices of a host with four chips, for compilation only."""
    return topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices


def compile_for(chip: Chip, function: Callable, arguments):
    """Compiles the function for the chip; `arguments` are `jax.ShapeDtypeStruct`s, on one device unless sharded.

    Raises jax.errors.JaxRuntimeError if the compiler rejects the program, RuntimeError if it compiled for the CPU.
    """
    one = NamedSharding(Mesh(np.asarray(devices(chip)[:1]), ("chip",)), P())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one), arguments)
    mesh = jax.tree.leaves(placed)[0].sharding.mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # kernels read the chip from the mesh
        compiled = jax.jit(function).lower(*placed).compile()
    if not re.search(r"tpu_custom_call|:T\(\d", compiled.as_text() or ""):  # a kernel or a TPU-only layout
        raise RuntimeError(f"compiled for the CPU, not for {chip.name}")
    return compiled


class Figures(NamedTuple):
    """Memory per device in MiB and floating-point operations of a compiled program."""

    temporaries: float
    peak: float  # of HBM, including arguments and results
    vmem: float  # of the operation with the most VMEM
    flops: float
    is_kernel: bool  # whether it contains a Pallas kernel


def figures(compiled) -> Figures:
    text, memory = compiled.as_text(), compiled.memory_analysis()
    scoped = re.findall(r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"', text)
    return Figures(
        temporaries=memory.temp_size_in_bytes / 2**20,
        peak=memory.peak_memory_in_bytes / 2**20,
        vmem=max(map(int, scoped), default=0) / 2**20,
        flops=compiled.cost_analysis()["flops"],
        is_kernel="tpu_custom_call" in text,
    )
