"""Running sums and minima within each sequence of a padded or packed row."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels._dispatch import axes_of, chosen, on_explicit_axes, promoted, require, varying_over
from pallas_kernels.segmented_cumsum import _gradients, _implementations, reference
from pallas_kernels.segmented_cumsum._monoids import MINIMUM, SUM, Operation

__all__ = ["segmented_cummin", "segmented_cumsum"]

SCANS = {"chunked": _implementations.only_chunked, "tpu": _implementations.only_tpu}
IMPLEMENTATIONS = {"reference": reference.segmented_scan, **SCANS}


@on_explicit_axes(lambda spec: spec)
def segmented_cumsum(
    x: Float[Array, "*B T"],
    segment_ids: Int[Array, "*B T"] | Bool[Array, "*B T"],
    *,
    reverse: bool = False,
    exclusive: bool = False,
    implementation: str | None = None,
) -> Float[Array, "*B T"]:
    """Running sum along the last axis within each sequence.

        y_t = Σ_s x_s   over s ≤ t with id_s = id_t ≠ 0      (s ≥ t if `reverse`; without s = t if `exclusive`)

    id is `segment_ids`. A position with id 0 is a hole: it neither adds nor resets the sum, and its x may be NaN.
    `segmented_cummin` is the same scan with a minimum. The function is differentiable in `x` to any order in reverse
    mode. The gradient is the same scan in the other direction.

    Sums are compensated and restart at each sequence. In float32, |error| ≤ 1e-6 Σ_s |x_s| at T = 131072
    (tests/kernels/segmented_cumsum_accuracy_test.py). "reference" and "chunked" have run on CPUs only. "tpu" has never
    run on a TPU, only in interpreters (tests/kernels/segmented_cumsum_mosaic_test.py); `make tpu-compile` compiles it.

    Args:
      x: [*B, T], floating point.
      segment_ids: [*B, T], integers or bool. Equal non-zero ids in a row are one sequence, whose positions must be
        contiguous except for holes. With a boolean mask each row is one sequence, and false is a hole.
      reverse: Whether sums run from the end of each sequence to its start.
      exclusive: Whether y_t excludes x_t.
      implementation: "reference" (dense, the definition), "chunked" (any device) or "tpu" (float32); None is "tpu" on
        TPUs in float32, else "chunked". With several TPUs, "tpu" needs a `shard_map` over all axes of the mesh.

    Returns:
      y, [*B, T], in the unit of `x`; float32, or float64 if `x` is. y is 0 at holes.

    Raises:
      ValueError: If a shape or the implementation name is invalid.
      TypeError: If a dtype is invalid.
      NotImplementedError: If "tpu" is lowered for another platform, or for several TPUs outside of a `shard_map`.

    >>> import jax.numpy as jnp
    >>> x, ids = jnp.array([1.0, 2.0, jnp.nan, 4.0, 8.0]), jnp.array([1, 1, 0, 1, 2])
    >>> segmented_cumsum(x, ids).tolist()
    [1.0, 3.0, 0.0, 7.0, 8.0]
    >>> segmented_cumsum(x, ids, reverse=True, exclusive=True).tolist()
    [6.0, 4.0, 0.0, 0.0, 0.0]
    """
    return _scan(SUM, _gradients.cumsum, x, segment_ids, reverse, exclusive, implementation)


@on_explicit_axes(lambda spec: spec)
def segmented_cummin(
    x: Float[Array, "*B T"],
    segment_ids: Int[Array, "*B T"] | Bool[Array, "*B T"],
    *,
    reverse: bool = False,
    exclusive: bool = False,
    implementation: str | None = None,
) -> Float[Array, "*B T"]:
    """Running minimum along the last axis within each sequence.

        y_t = min_s x_s   over s ≤ t with id_s = id_t ≠ 0      (s ≥ t if `reverse`; without s = t if `exclusive`)

    Unlike in `segmented_cumsum`, y is +∞ at holes and, if `exclusive`, at a sequence's first position in scan order.
    Differentiable in `x` in reverse mode: the gradient of y_t goes to the position of the minimum, the first one in the
    direction of the scan if several are equal ("reference" divides it among them).

    Args:
      x: [*B, T], floating point.
      segment_ids: id, [*B, T], integers or bool; defines sequences and holes as in `segmented_cumsum`.
      reverse: Whether minima run from the end of each sequence to its start.
      exclusive: Whether y_t excludes x_t.
      implementation: "reference", "chunked", "tpu" or None, as in `segmented_cumsum`; "tpu" has never run on a TPU.

    Returns:
      y, [*B, T], in the unit of `x`; float32, or float64 if `x` is.

    Raises:
      ValueError, TypeError, NotImplementedError: As `segmented_cumsum` does.

    >>> import jax.numpy as jnp
    >>> segmented_cummin(jnp.array([3.0, 1.0, 2.0, 4.0, 5.0]), jnp.array([1, 1, 0, 1, 2])).tolist()
    [3.0, 1.0, inf, 1.0, 5.0]
    """
    return _scan(MINIMUM, _gradients.cummin, x, segment_ids, reverse, exclusive, implementation)


def _scan(operation: Operation, differentiable: Callable, x, segment_ids, reverse, exclusive, implementation):
    name = chosen(operation.name, implementation, (None, *IMPLEMENTATIONS))
    run = _implementations.best if name is None else IMPLEMENTATIONS[name]
    x, ids = _prepare(operation.name, x, segment_ids)
    if x.size == 0:
        return x
    if run is reference.segmented_scan:
        return reference.segmented_scan(operation, x, ids, reverse, exclusive)
    return differentiable(run, x, ids, reverse, exclusive)


def _prepare(kernel: str, x, segment_ids):
    """Checks the arguments; returns (x in the accumulators' dtype with 0 in holes, int32 ids or boolean mask)."""
    shape, dtype = jnp.shape(x), jnp.result_type(x)
    require(len(shape) > 0, kernel, "x", f"has shape {shape}", "[*B, T], with at least the axis T")
    require(jnp.issubdtype(dtype, jnp.floating), kernel, "x", f"has dtype {dtype}", "floating point", TypeError)
    given = jnp.shape(segment_ids)
    require(given == shape, kernel, "segment_ids", f"has shape {given}", f"{shape}, as x")
    kind = jnp.result_type(segment_ids)
    whole = jnp.issubdtype(kind, jnp.integer) or kind == jnp.bool_
    require(whole, kernel, "segment_ids", f"has dtype {kind}", "integer ids or a boolean mask", TypeError)
    ids = jnp.asarray(segment_ids).astype(jnp.bool_ if kind == jnp.bool_ else jnp.int32)
    accumulated = jnp.asarray(x).astype(promoted(dtype, jnp.float32))
    rows = jnp.where(ids.astype(jnp.bool_), accumulated, 0), ids
    return varying_over(axes_of(*rows), *rows)
