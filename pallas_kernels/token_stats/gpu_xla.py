"""token_stats on an NVIDIA GPU under XLA: the tiles of `chunked`, large enough for cuBLAS to reach its peak.

All tokens of a microbatch × a part of the vocabulary, so that each row of ∂W is made once and ∂h is added to once a
tile.  The products read and write their operands in memory, a logit's at 14 bytes backward and 12 forward.
"""

import jax
from jax import Array

from pallas_kernels._vocabulary.statistics import Slope, Sums
from pallas_kernels._vocabulary.tiles import even
from pallas_kernels._vocabulary.types import Head, Tile, dtypes
from pallas_kernels.token_stats import chunked

ROWS = 8192
LOGITS = 2**26  # 256 MiB in float32, and 128 of ∂z in bfloat16


def best_tile(tokens: int, vocabulary: int) -> Tile:
    """Up to `ROWS` tokens × as many columns as make about `LOGITS` logits."""
    rows = even(tokens, ROWS)
    return Tile(rows, even(vocabulary, LOGITS // rows // 8 * 8))


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    """`chunked.sums` with a GPU's tile."""
    with jax.named_scope("tiled"):
        return chunked.sums(hidden, head, targets, tile or best_tile(hidden.shape[0], head.unembedding.shape[0]))


def gradients(hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None):
    """`chunked.gradients` with a GPU's tile, and products of the inputs' dtype, which its tensor cores are made for."""
    products = dtypes(hidden, head.unembedding)[0]
    tile = tile or best_tile(hidden.shape[0], head.unembedding.shape[0])
    with jax.named_scope("tiled"):
        return chunked.gradients(hidden, head, targets, slope, tile, dtype, products)
