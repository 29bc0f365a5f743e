"""The device mesh, and the way of arrays between hosts and devices: every process holds the same host arrays."""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.training.config import Config, MeshConfig, check

ROWS = P(("data", "fsdp"))


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh (data, fsdp, tensor) over all devices of all processes; ValueError where sizes do not divide."""
    devices, sizes = jax.device_count(), list(dataclasses.astuple(config))
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    check(int(np.prod(sizes)) == devices, "mesh (data, fsdp, tensor)", dataclasses.astuple(config),
          f"sizes whose product is the {devices} devices there are (one may be -1)")  # fmt: skip
    return jax.make_mesh(tuple(sizes), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def check_divides(config: Config, mesh: Mesh) -> None:
    """Raises ValueError, naming the fields, where the rows of a step do not divide over the mesh."""
    shards, rollout = mesh.shape["data"] * mesh.shape["fsdp"], config.rollout
    trained = "(rollout.train_groups or .prompts) × .completions / (.minibatches × optimizer.microbatches)"
    rows = {
        "rollout.prompts × rollout.completions": rollout.prompts * rollout.completions,
        trained: rollout.minibatch_rows // config.optimizer.microbatches,
        "evaluation.batch": config.evaluation.batch,
    }
    if "greedy_rewards" in config.needs:
        rows["rollout.prompts"] = rollout.prompts
    if config.likelihood.steps:
        parts = config.likelihood.optimizer.microbatches
        rows["likelihood.rows / likelihood.optimizer.microbatches"] = config.likelihood.rows // parts
    for argument, count in rows.items():
        check(count % shards == 0, argument, count, f"a multiple of mesh.data × mesh.fsdp = {shards}")


def to_devices(tree, mesh: Mesh, spec: P = ROWS):
    """Host arrays, equal on every process, as global arrays split by `spec`."""
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def to_host(tree):
    """Global arrays as NumPy arrays, whole on every process; what is on the host already stays as it is."""

    def whole(x):
        if not isinstance(x, jax.Array):
            return x
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.device_get(tree) if jax.process_count() == 1 else jax.tree.map(whole, tree)
