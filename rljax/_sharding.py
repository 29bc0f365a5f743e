"""Resharding of arrays on meshes with explicit axes, the default of `jax.make_mesh`."""

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def gathered(x: Array, *axes: int) -> Array:
    """x, not split along `axes` (default: all) over explicit mesh axes, as sorts, scans and gathers require."""
    if not _explicit(x):
        return x
    sharding = jax.typeof(x).sharding
    whole = range(x.ndim) if not axes else [axis % x.ndim for axis in axes]
    spec = P(*(None if axis in whole else entry for axis, entry in enumerate(sharding.spec)))
    return x if spec == sharding.spec else jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))


def rows(table: Array, ids: Array) -> Array:
    """`table[ids]`, sharded like `ids`."""
    if not _explicit(table) and not _explicit(ids):
        return table[ids]
    sharding = jax.typeof(ids if _explicit(ids) else table).sharding
    spec = P(*(jax.typeof(ids).sharding.spec if _explicit(ids) else [None] * ids.ndim), None)
    return gathered(table).at[ids].get(out_sharding=NamedSharding(sharding.mesh, spec))


def require_unsharded(**arrays) -> None:
    """Raises if an array is sharded over explicit mesh axes."""
    for name, x in arrays.items():
        if _explicit(x):
            raise ValueError(
                f"{name} has sharding {jax.typeof(x).sharding.spec}: expected no explicit mesh axes; call this inside"
                " `jax.sharding.auto_axes` or `jax.shard_map`"
            )


def _explicit(x: Array) -> bool:
    return any(entry is not None for entry in jax.typeof(x).sharding.spec)
