"""Mesh axes, and over which of them each axis of a parameter or an activation is split: the one file that names them.

A new mesh axis is a field of `MeshConfig`, and of `ShardingRules` a field (or a value) that uses it.
"""

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
    """Number of devices along each mesh axis; one of them may be -1, which takes all that the others leave."""

    data: int = -1
    """Replicas: each holds all parameters and sees its share of the rows."""
    fsdp: int = 1
    """Shards of the parameters along their embedding axis; rows are split over these devices too."""
    tensor: int = 1
    """Shards of heads, MLP columns and vocabulary."""

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            check(size == -1 or size >= 1, f"mesh.{axis}", size, "a positive number of devices, or -1 for the rest")
        check(list(dataclasses.astuple(self)).count(-1) <= 1, "mesh", dataclasses.astuple(self), "at most one -1")


MESH_AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh over the devices, by default all of all processes; ValueError if the sizes do not multiply to them."""
    devices = jax.devices() if devices is None else devices
    sizes = list(dataclasses.astuple(config))
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    check(math.prod(sizes) == len(devices), f"mesh ({', '.join(MESH_AXES)})", dataclasses.astuple(config),
          f"sizes whose product is the {len(devices)} devices there are (one may be -1)")  # fmt: skip
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axis over which each logical axis is split; None keeps it whole on every device."""

    rows: tuple[str, ...] = ("data", "fsdp")
    """Rows of a batch and of activations, split over all of these together."""
    embed: str | None = "fsdp"
    """Features of the residual stream, in parameters."""
    vocab: str | None = "tensor"
    """Rows of the embedding and unembedding tables."""
    heads: str | None = "tensor"
    """Query heads."""
    kv_heads: str | None = "tensor"
    """Key and value heads."""
    mlp: str | None = "tensor"
    """Features inside the MLP."""
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
        """The PartitionSpec of an array with these logical axes."""
        return P(*(getattr(self, axis) for axis in logical))

    def row_shards(self, mesh: Mesh | AbstractMesh) -> int:
        """Number of parts that rows are split into."""
        return math.prod(mesh.shape[axis] for axis in self.rows)


RULES = ShardingRules()


def param_shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh, rules: ShardingRules) -> dict:
    """The NamedSharding of each parameter, as a pure pytree; raises ValueError if the mesh does not divide one."""
    missing = [axis for axis in MESH_AXES if axis not in mesh.axis_names]
    if missing:
        raise ValueError(f"mesh has the axes {mesh.axis_names}: expected {MESH_AXES} (one may have size 1)")

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
    """Asks that parameters, and so their gradients, are split by the rules, on whatever mesh the computation runs."""
    mesh = _mesh_of(jax.tree.leaves(params)[0])
    if mesh is None:
        return params
    return jax.tree.map(lax.with_sharding_constraint, params, param_shardings(abstract, mesh, rules))


def split_rows(x: Array, rules: ShardingRules) -> Array:
    """Asks that the first axis of x is split as rows are; if it does not divide, x stays as it is."""
    mesh = _mesh_of(x)
    if mesh is None or x.shape[0] % rules.row_shards(mesh):
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(rules.rows)))


def _mesh_of(x: Array) -> AbstractMesh | None:
    """The mesh of the enclosing jit's inputs; None without one, or if it is not ours to lay arrays out on."""
    mesh = jax.typeof(x).sharding.mesh
    ours = set(MESH_AXES) <= set(mesh.axis_names) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours else None
