"""Kernels for LLM-RL losses.  Every kernel is a folder: `reference` defines it, `chunked` runs on any device.

A function takes `implementation=None`, which picks the best one there is for the platform, or the name of one, which
runs or raises.  This package imports jax and jaxtyping only.
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
