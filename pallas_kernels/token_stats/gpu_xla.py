"""token_stats on an NVIDIA GPU under XLA: `chunked` with tiles large enough for efficient cuBLAS products.

A tile is all tokens of a microbatch (up to `ROWS`) × a part of the vocabulary, so each row of ∂W is computed once. The
logits pass through memory: 12 bytes per logit forward and 14 backward, by arithmetic, since it has never run on a GPU.
"""

import jax
from jax import Array

from pallas_kernels._vocabulary.statistics import Slope, Sums
from pallas_kernels._vocabulary.tiles import even
from pallas_kernels._vocabulary.types import Head, Tile, dtypes
from pallas_kernels.token_stats import chunked

ROWS = 8192
LOGITS = 2**26  # per tile: 256 MiB in float32, and 128 MiB for ∂z in bfloat16


def best_tile(tokens: int, vocabulary: int) -> Tile:
    """Up to `ROWS` tokens, and as many columns as give about `LOGITS` logits."""
    rows = even(tokens, ROWS)
    return Tile(rows, even(vocabulary, LOGITS // rows // 8 * 8))


def sums(hidden: Array, head: Head, targets: Array, tile: Tile | None) -> Sums:
    with jax.named_scope("tiled"):
        return chunked.sums(hidden, head, targets, tile or best_tile(hidden.shape[0], head.unembedding.shape[0]))


def gradients(hidden: Array, head: Head, targets: Array, slope: Slope, tile: Tile | None, dtype=None):
    """`chunked.gradients` with this module's default tile, and products in the inputs' dtype for the tensor cores."""
    products = dtypes(hidden, head.unembedding)[0]
    tile = tile or best_tile(hidden.shape[0], head.unembedding.shape[0])
    with jax.named_scope("tiled"):
        return chunked.gradients(hidden, head, targets, slope, tile, dtype, products)
