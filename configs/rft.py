"""Rejection fine-tuning on the string task: maximum likelihood on the sampled completions that the verifier accepts.

The run samples as many completions as `strings.py` and trains on every verified one. As a policy-gradient objective, A
is the reward, w averages over the tokens of verified completions, and e^f is 1 with the gradient of log π.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from jax import lax
from rljax.configs import strings

from rljax import PolicyGradient


def verified(rewards, mask):
    """A = 1 on the tokens of a verified completion, 0 elsewhere."""
    return jnp.where(mask, rewards[..., None], 0.0)


def verified_token_mean(mask, sign):
    """w = 1 / (tokens of verified completions), on those tokens."""
    kept = mask & (sign > 0)[..., None]
    return jnp.where(kept, 1.0 / jnp.maximum(jnp.sum(kept), 1), 0.0)


def likelihood(log_ratio, advantages, segments):
    """f = ℓ − sg(ℓ)."""
    return log_ratio - lax.stop_gradient(log_ratio)


config = dataclasses.replace(
    strings.config,
    run=Path("runs/rft"),
    algorithm=PolicyGradient(advantage=verified, aggregation=verified_token_mean, ratio=likelihood),
    rollout=dataclasses.replace(strings.config.rollout, train_groups=0),
)
