"""Other ways to hold a token back than PPO's clip: weights, smooth gates, trust regions by divergence."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient


def cispo(*, low: float | Array | None = None, high: float | Array = 0.28) -> PolicyGradient:
    """CISPO (2506.13585): the clipped ratio as a weight of ∇log π, so that no token loses its gradient."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(partial(ratio.two_sided_clip, low=low, high=high)),
    )


def sapo(*, positive: float | Array = 1.0, negative: float | Array = 1.05) -> PolicyGradient:
    """SAPO (2511.20347): a smooth gate of each token's ratio in place of a clip."""
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.soft_gate, positive=positive, negative=negative),
    )


def dppo(*, low: float | Array = 0.15, high: float | Array = 0.15, cap: float | Array = 3.0) -> PolicyGradient:
    """DPPO (2602.04879): a trust region by the change of the token's probability, not of its ratio.

    Its other form bounds a KL divergence, `ratio.kl_mask` with low = high = 0.05.
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.total_variation_mask, low=low, high=high, cap=cap),
    )


def cppo(*, limit: float | Array = 0.15, slack: float | Array = 0.02, least: float | Array = 0.8) -> PolicyGradient:
    """CPPO (2606.10968): a budget of divergence that a sequence spends as it goes. Needs `Batch.divergence`.

    `divergence.total_variation` over the old policy's 20 likeliest tokens is the paper's. slack 0.015 to 0.02;
    advantage and aggregation are ours: not verified from the source.
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.cumulative_divergence_mask, limit=limit, slack=slack, least=least),
    )
