"""Segmented scans to compile for real chips: a long batch, the longest row, and one that fills no block."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import segmented_cummin, segmented_cumsum

SHAPES = [(512, 4096), (1, 131072), (3, 1000)]


def value_and_gradient(scan, x, ids):
    """y, and the gradient of a loss of it; what is not finite (a minimum over nothing) is left out."""

    def loss(x):
        y = scan(x, ids)
        return jnp.sum(jnp.where(jnp.isfinite(y), jnp.sin(y), 0)), y

    return jax.grad(loss, has_aux=True)(x)


def cases() -> Iterable[tuple[str, Any, list[jax.ShapeDtypeStruct]]]:
    """(name, function, its abstract arguments), forward and gradient; both directions and kinds of ids among them."""
    scans = {
        "cumsum": (segmented_cumsum, jnp.int32),
        "cumsum reverse exclusive": (partial(segmented_cumsum, reverse=True, exclusive=True), jnp.bool_),
        "cummin exclusive": (partial(segmented_cummin, exclusive=True), jnp.int32),
    }
    for shape in SHAPES:
        for name, (scan, kind) in scans.items():
            arguments = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.float32, kind)]
            yield f"segmented_{name} {list(shape)}", partial(value_and_gradient, scan), arguments
