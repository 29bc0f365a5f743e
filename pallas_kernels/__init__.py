"""Kernels for LLM-RL losses: statistics over the vocabulary from hidden states, and scans within sequences.

Each kernel is a package: its module `reference` is the definition, and `chunked` is for any device. By default the
platform selects the implementation; a named one runs or raises. The package imports only jax and jaxtyping.
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
