"""token_stats on a TPU: three Pallas kernels for the forward sums, ∂hidden, and ∂unembedding with ∂bias.

The kernels have never run on a TPU: they run in Pallas' interpreter (tests/kernels); `make tpu-compile` compiles them.
Each is a pass over tiles of the logits [N, V], which stay in VMEM; see `forward` and `backward_tile`.
"""

from typing import Any

from jax import Array

from pallas_kernels._vocabulary.statistics import Slope
from pallas_kernels._vocabulary.types import Head, Tile
from pallas_kernels.token_stats.tpu.backward_hidden import hidden_gradient
from pallas_kernels.token_stats.tpu.backward_weight import weight_gradient
from pallas_kernels.token_stats.tpu.forward import sums

__all__ = ["gradients", "hidden_gradient", "sums", "weight_gradient"]


def gradients(
    hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype: Any = None
) -> tuple[Array, Array, Array | None]:
    dh = hidden_gradient(hidden, head, targets, slope, tile, dtype or hidden.dtype)
    return dh, *weight_gradient(hidden, head, targets, slope, tile)
