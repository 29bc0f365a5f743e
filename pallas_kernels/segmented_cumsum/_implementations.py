"""Choice between the TPU kernel and the chunked loop when a program is lowered, since its devices are known only then.

Until lowering, the kernel is a primitive on [*B, T]. The compiler cannot partition a Mosaic kernel. With several
TPUs, outside of a `shard_map` over all axes of the mesh, `implementation=None` uses the loop and "tpu" raises.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from pallas_kernels._dispatch import require
from pallas_kernels.segmented_cumsum import chunked, tpu

_kernel = Primitive("segmented_scan_tpu")


def best(operation, x, segment_ids, reverse, exclusive):
    """The kernel on a TPU in float32 if the program's partitioning permits it, else the loop."""
    if x.dtype != jnp.float32:
        return only_chunked(operation, x, segment_ids, reverse, exclusive)
    kernel = partial(_kernel.bind, operation=operation, reverse=reverse, exclusive=exclusive, or_chunked=True)
    loop = partial(_with, only_chunked, operation, reverse, exclusive)
    return lax.platform_dependent(x, segment_ids, tpu=kernel, default=loop)


@partial(jax.jit, static_argnums=(0, 3, 4))
def only_tpu(operation, x, segment_ids, reverse, exclusive):
    """The kernel; lowering raises NotImplementedError if it cannot run."""
    remedy = "float32 for implementation 'tpu'; 'chunked' takes other dtypes"
    require(x.dtype == jnp.float32, operation.name, "x", f"has dtype {x.dtype}", remedy, TypeError)
    return _kernel.bind(x, segment_ids, operation=operation, reverse=reverse, exclusive=exclusive, or_chunked=False)


def only_chunked(operation, x, segment_ids, reverse, exclusive):
    with jax.named_scope(f"{operation.name}_chunked"):
        return chunked.segmented_scan(operation, x, segment_ids, reverse, exclusive)


def _mosaic(operation, x, segment_ids, reverse, exclusive):
    with jax.named_scope(f"{operation.name}_tpu"):
        return tpu.segmented_scan(operation, x, segment_ids, reverse, exclusive)


def _with(scan, operation, reverse, exclusive, x, segment_ids):
    return scan(operation, x, segment_ids, reverse, exclusive)


@_kernel.def_abstract_eval
def _(x, segment_ids, **parameters):
    return x


def _lower(ctx, x, segment_ids, *, operation, reverse, exclusive, or_chunked):
    def lowered(scan):
        return mlir.lower_fun(partial(_with, scan, operation, reverse, exclusive), False)(ctx, x, segment_ids)

    try:
        return lowered(_mosaic)
    except (NotImplementedError, ValueError) as error:
        if or_chunked and isinstance(error, NotImplementedError):
            return lowered(only_chunked)
        raise NotImplementedError(
            f"{operation.name}: implementation = 'tpu': expected a TPU, or several within a shard_map over all axes "
            f"of their mesh ({error}); None picks an implementation that can run"
        ) from error


mlir.register_lowering(_kernel, _lower)


def _batched(arrays, axes, **parameters):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    rows = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes, strict=True)
    )
    return _kernel.bind(*rows, **parameters), 0


batching.primitive_batchers[_kernel] = _batched
