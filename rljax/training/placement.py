"""Arrays between hosts and the device mesh: every process holds the same host arrays."""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def to_devices(tree, mesh: Mesh, spec: P):
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
