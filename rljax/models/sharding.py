"""Which mesh axis each logical axis of a parameter is split over, and rows of activations over data and fsdp."""

import jax
from flax import nnx
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
RULES = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
    "layer_norm": None,
}


def param_shardings(abstract: nnx.State, mesh: Mesh | AbstractMesh) -> dict:
    """The NamedSharding of each parameter, as a pure pytree; raises ValueError where the mesh does not divide."""
    missing = [axis for axis in MESH_AXES if axis not in mesh.axis_names]
    if missing:
        raise ValueError(f"mesh has the axes {mesh.axis_names}: expected {MESH_AXES} (one may have size 1)")

    def sharding(path, param: nnx.Variable):
        spec = P(*(RULES[axis] for axis in param.out_sharding))
        for axis, size in zip(param.out_sharding, param.shape, strict=True):
            count = mesh.shape[RULES[axis]] if RULES[axis] else 1
            if size % count:
                raise ValueError(f"mesh {RULES[axis]} = {count}: expected a divisor of {axis!r} = {size}, the axis "
                                 f"that it splits in {jax.tree_util.keystr(path)}")  # fmt: skip
        return param.replace(NamedSharding(mesh, spec))

    state = jax.tree.map_with_path(sharding, abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(state)


def keep_split(params: dict, abstract: nnx.State) -> dict:
    """Asks that parameters, and so their gradients, lie as the rules say, on whatever mesh the computation runs."""
    mesh = _mesh_of(jax.tree.leaves(params)[0])
    return (
        params if mesh is None else jax.tree.map(lax.with_sharding_constraint, params, param_shardings(abstract, mesh))
    )


def split_rows(x: Array) -> Array:
    """Asks that the first axis of x lie split over (data, fsdp); where the rows do not divide, x stays as it is."""
    mesh = _mesh_of(x)
    if mesh is None or x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(ROWS)))


def _mesh_of(x: Array) -> AbstractMesh | None:
    """The mesh that the inputs of the enclosing jit lie on; None without one, or where it is not ours to lay out."""
    mesh = jax.typeof(x).sharding.mesh
    ours = set(MESH_AXES) <= set(mesh.axis_names) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours else None
