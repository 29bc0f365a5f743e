"""Ratios f: how far the policy moved, from log-ratios to log-ratios.

Each is `f(log_ratio, advantages, segments) -> log_ratio`, all `[*B, T]` with time last; `segments` is a boolean mask
(every row one sequence) or int32 ids (0 = not trained; equal non-zero ids in a row are one sequence, and zeros inside
it neither add nor reset). ℓ_t is the log-ratio of token t, m_t true where it is trained, n = Σ m_t, A_t its advantage;
position t is the ordinal among the trained tokens, 1-based. Reductions run in float32, or float64 where ℓ is float64.
What a ratio needs beyond its three arguments it names as a keyword-only parameter: hyper-parameters are bound with
`functools.partial`, the rest comes from the field of that name of the `Batch`.

All raise ValueError where shapes differ or a hyper-parameter is out of range, TypeError for float segments.
"""

from rljax.ratio.clips import clamp, clip, gamma_gate, log_clip, position_clip, soft_gate, taper, two_sided_clip
from rljax.ratio.compose import chain, local_gradient
from rljax.ratio.masks import cumulative_divergence_mask, kl_mask, total_variation_mask
from rljax.ratio.pools import (
    cumulative,
    power_mean,
    prefix_mean,
    prefix_min,
    sequence_mean,
    sequence_sum,
    token,
)

__all__ = [
    "chain",
    "clamp",
    "clip",
    "cumulative",
    "cumulative_divergence_mask",
    "gamma_gate",
    "kl_mask",
    "local_gradient",
    "log_clip",
    "position_clip",
    "power_mean",
    "prefix_mean",
    "prefix_min",
    "sequence_mean",
    "sequence_sum",
    "soft_gate",
    "taper",
    "token",
    "total_variation_mask",
    "two_sided_clip",
]
