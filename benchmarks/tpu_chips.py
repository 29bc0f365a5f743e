"""The TPU generations, and compiling for them on a machine that has none: libtpu need only be told of the chips."""

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

# Without a TPU, libtpu would ask in vain who it is; it locks other processes out; its programs cannot be cached.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
}


class Chip(NamedTuple):
    """One jax device of a generation; the rates are those of its public specification."""

    name: str
    topology: str  # the smallest host that has four chips
    flops: float  # bfloat16, per second
    bandwidth: float  # of HBM, bytes per second
    cores: int  # TensorCores that share a device's work
    cycle_flops: int  # of the matrix units of one core; what the compiler's schedules keep to

    @property
    def clock(self) -> float:
        """Cycles per second: 1.50, 1.75, 1.75 and 2.20 GHz."""
        return self.flops / (self.cores * self.cycle_flops)


SMALL = 4 * 128 * 128 * 2  # four units, a row each per cycle: 16 rows of bfloat16 are 16 cycles apart in the bundles
LARGE = 2 * 256 * 256 * 2 * 2  # two units, two rows each per cycle: 16 rows are 8 cycles apart

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
    """Starts this program again with what has to be in the environment before jax is imported."""
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)


@cache
def devices(chip: Chip):
    """The devices of a host of four chips; they take programs to compile, and run nothing."""
    return topologies.get_topology_desc(platform="tpu", topology_name=chip.topology).devices


def compile_for(chip: Chip, function: Callable, arguments):
    """The function compiled for the chip, its arguments `jax.ShapeDtypeStruct`s, on one device where not sharded.

    Raises jax.errors.JaxRuntimeError where the compiler refuses, RuntimeError where it compiled for the CPU.
    """
    one = NamedSharding(Mesh(np.asarray(devices(chip)[:1]), ("chip",)), P())
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one), arguments)
    mesh = jax.tree.leaves(placed)[0].sharding.mesh
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells a kernel for which chip it is traced
        compiled = jax.jit(function).lower(*placed).compile()
    if not re.search(r"tpu_custom_call|:T\(\d", compiled.as_text() or ""):  # a kernel, or a layout that only a TPU has
        raise RuntimeError(f"compiled for the CPU, not for {chip.name}")
    return compiled


class Figures(NamedTuple):
    """What a compiled program needs on each device: MiB, and floating-point operations."""

    temporaries: float
    peak: float  # of HBM, arguments and results included
    vmem: float  # of the operation that takes most
    flops: float
    is_kernel: bool  # a Pallas kernel is in it


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
