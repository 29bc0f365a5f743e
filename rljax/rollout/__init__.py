"""Sampling of completions and their log-probabilities."""

from rljax.rollout.generate import Samples, check_left_padded, generate
from rljax.rollout.sampling import SamplingConfig, row_keys
from rljax.rollout.streaming import stream

__all__ = ["Samples", "SamplingConfig", "check_left_padded", "generate", "row_keys", "stream"]
