"""Arrays sharded over explicit mesh axes, the default of `jax.make_mesh`, where JAX does not choose layouts itself."""

import jax
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P


def gathered(x: Array, *axes: int) -> Array:
    """x with these axes whole on every device, if they are sharded over explicit mesh axes; all axes if none is named.

    Sorts, scans and gathers along an axis need it whole.
    """
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or all(entry is None for entry in sharding.spec):
        return x
    whole = range(x.ndim) if not axes else [axis % x.ndim for axis in axes]
    spec = P(*(None if axis in whole else entry for axis, entry in enumerate(sharding.spec)))
    return x if spec == sharding.spec else jax.sharding.reshard(x, NamedSharding(sharding.mesh, spec))
