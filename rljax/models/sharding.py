"""Mesh axes (the fields of `MeshConfig`) and the axes of parameters and activations that they shard."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rljax._checks import check


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one field may be -1, which stands for all remaining devices.

    Raises ValueError if a size is neither -1 nor positive, or if two sizes are -1.
    """

    data: int = -1
    """Number of replicas. Each replica holds all parameters and processes its share of the rows."""
    fsdp: int = 1
    """Number of shards of the parameters along their embedding axis. The rows are sharded over this axis too."""
    tensor: int = 1
    """Number of shards of the heads, the MLP columns and the vocabulary."""

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            check(size == -1 or size >= 1, f"mesh.{axis}", size, "a positive number of devices, or -1 for the rest")
        check(list(dataclasses.astuple(self)).count(-1) <= 1, "mesh", dataclasses.astuple(self), "at most one -1")


MESH_AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the axis sizes of `config` over `devices`, by default all devices of all processes.

    Raises ValueError if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(dataclasses.astuple(config))
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    check(math.prod(sizes) == len(devices), f"mesh ({', '.join(MESH_AXES)})", dataclasses.astuple(config),
          f"axis sizes that multiply to {len(devices)} devices (one size may be -1)")  # fmt: skip
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axis that shards each logical axis; None replicates the logical axis.

    Raises ValueError if a field names an axis that `MeshConfig` does not have.
    """

    rows: tuple[str, ...] = ("data", "fsdp")
    """Rows of batches and activations, sharded over all of these mesh axes together."""
    embed: str | None = "fsdp"
    """Features of the residual stream, in parameters only."""
    vocab: str | None = "tensor"
    """Rows of the embedding and unembedding tables."""
    heads: str | None = "tensor"
    """Query heads."""
    kv_heads: str | None = "tensor"
    """Key and value heads."""
    mlp: str | None = "tensor"
    """Features inside the MLP."""
    experts: str | None = None
    """Experts of a mixture of experts."""
    head_dim: str | None = None
    """Features of a head."""
    layer_norm: str | None = None
    """Scales of normalizations."""

    def __post_init__(self):
        for name, axis in dataclasses.asdict(self).items():
            if name != "rows":
                check(axis is None or axis in MESH_AXES, f"sharding.{name}", axis, f"None or one of {MESH_AXES}")
        fits = isinstance(self.rows, tuple) and set(self.rows) <= set(MESH_AXES)
        check(fits, "sharding.rows", self.rows, f"a tuple of mesh axes among {MESH_AXES}")

    def spec(self, *logical: str) -> P:
        """PartitionSpec of an array with these logical axes, which are names of fields of this class."""
        return P(*(getattr(self, axis) for axis in logical))

    def row_shards(self, mesh: Mesh | AbstractMesh) -> int:
        """Number of shards of the rows on `mesh`."""
        return math.prod(mesh.shape[axis] for axis in self.rows)


RULES = ShardingRules()


def param_shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> dict:
    """NamedSharding of each parameter, as a nested dict.

    Raises ValueError if `mesh` lacks an axis of `MeshConfig` or if an axis of a parameter is not divisible.
    """
    missing = [axis for axis in MESH_AXES if axis not in mesh.axis_names]
    if missing:
        raise ValueError(f"mesh has the axes {mesh.axis_names}: expected {MESH_AXES} (an axis may have size 1)")

    def sharding(path, param: nnx.Variable):
        spec = rules.spec(*param.out_sharding)
        for logical, axis, size in zip(param.out_sharding, spec, param.shape, strict=True):
            count = mesh.shape[axis] if axis else 1
            if size % count:
                raise ValueError(f"mesh {axis} = {count}: expected a divisor of {logical!r} = {size}, the axis "
                                 f"that it splits in {jax.tree_util.keystr(path)}")  # fmt: skip
        return param.replace(NamedSharding(mesh, spec))

    state = jax.tree.map_with_path(sharding, abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(state)


def keep_split(params: dict, abstract: nnx.State, rules: ShardingRules) -> dict:
    """Constrains parameters, and thereby their gradients, to the shardings of `rules` on their mesh."""
    mesh = _mesh_of(jax.tree.leaves(params)[0])
    if mesh is None:
        return params
    return jax.tree.map(lax.with_sharding_constraint, params, param_shardings(abstract, mesh, rules))


def split_rows(x: Array, rules: ShardingRules) -> Array:
    """Constrains the first axis of x to the sharding of rows; returns x unchanged if the axis is not divisible."""
    mesh = _mesh_of(x)
    if mesh is None or x.shape[0] % rules.row_shards(mesh):
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(rules.rows)))


def _mesh_of(x: Array) -> AbstractMesh | None:
    """The mesh of x; None if the mesh lacks one of MESH_AXES or has an axis that is not Auto."""
    mesh = jax.typeof(x).sharding.mesh
    ours = set(MESH_AXES) <= set(mesh.axis_names) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours else None
