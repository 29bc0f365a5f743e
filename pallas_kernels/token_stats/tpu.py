"""token_stats on a TPU: three Pallas kernels, of the sums and of the gradients of hidden states and of the unembedding.

Each is a pass over tiles of [N, V] logits, which never leave VMEM; see `_tpu_forward` and `_tpu_backward`.
"""

from typing import Any

from jax import Array

from pallas_kernels.token_stats._statistics import Slope
from pallas_kernels.token_stats._tpu_forward import sums
from pallas_kernels.token_stats._tpu_hidden import hidden_gradient
from pallas_kernels.token_stats._tpu_weight import weight_gradient
from pallas_kernels.token_stats._types import Head, Tile

__all__ = ["gradients", "hidden_gradient", "sums", "weight_gradient"]


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype: Any = None
) -> tuple[Array, Array, Array | None]:
    """(∂hidden, ∂unembedding, ∂bias), in the dtypes of their own; ∂hidden in `dtype` where one is given."""
    dh = hidden_gradient(hidden, head, targets, slope, tile, dtype or hidden.dtype)
    return dh, *weight_gradient(hidden, head, targets, slope, tile)
