"""Rejection fine-tuning on the string task: sample, keep what the verifier accepts, fine-tune on it by likelihood.

It takes as many samples as reinforcement learning does in `strings.py`, one round a rollout, and learns from every
verified completion. In the algebra: A is the reward, w the mean over verified tokens, and e^{f(ℓ)} is 1 with the
gradient of log π. π is the policy that sampled, at the rollouts' temperature, as it is for the recipe beside which
this one stands.
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
