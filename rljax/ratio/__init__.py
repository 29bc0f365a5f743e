"""Ratios f: functions from log-ratios to log-ratios, differentiated on every microbatch.

A ratio is called as `f(log_ratio, advantages, segments)`. The three arrays and the result have one shape, [..., T] for
T tokens. `log_ratio` is ℓ = log π_θ(y) − log π_old(y), in nats, so r = e^ℓ. `advantages` is A; clips and trust regions
read only its sign, and pools ignore it. `segments` is a boolean mask, true at trained tokens, if every row is one
sequence. Otherwise it holds integer ids: 0 marks an untrained token, and equal non-zero ids in a row are one sequence,
which must be contiguous except for zeros. Untrained tokens do not affect trained ones; results at them are unspecified.

Symbols: m_t is 1 at trained tokens and 0 elsewhere, n = Σ m_t is the sequence's length, t counts the trained tokens of
a sequence from 1, sg is `stop_gradient`. Sums and results are float64 if `log_ratio` or `advantages` is, else float32.

Hyper-parameters are keyword-only; bind them with `functools.partial`. `policy_loss` fills in the other required
keyword-only parameters (`old_logp`, `divergence`) from the fields of `Batch` with these names.

All ratios raise ValueError if shapes differ or a hyper-parameter is out of range, and TypeError if `segments` is
neither boolean nor integer or `log_ratio` is not floating.
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
