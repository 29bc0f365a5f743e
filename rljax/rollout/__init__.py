"""Sampling: prompts in, completions and their log-probabilities out."""

from rljax.rollout.generate import Samples, generate
from rljax.rollout.sampling import SamplingConfig, row_keys

__all__ = ["Samples", "SamplingConfig", "generate", "row_keys"]
