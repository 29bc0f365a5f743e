"""Kernels for LLM-RL losses: statistics over the vocabulary from hidden states, and scans within sequences.

Every kernel is a folder: `reference` is its definition, `chunked` runs on any device. `implementation=None` picks the
best implementation for the platform; a named one runs or raises. This package imports jax and jaxtyping only.
"""

from pallas_kernels.segmented_cumsum import segmented_cummin, segmented_cumsum
from pallas_kernels.token_kl import token_kl
from pallas_kernels.token_stats import TokenStats, token_stats
from pallas_kernels.token_topk import TopTokens, token_topk

__all__ = [
    "TokenStats",
    "TopTokens",
    "segmented_cummin",
    "segmented_cumsum",
    "token_kl",
    "token_stats",
    "token_topk",
]
