"""Algorithms with a baseline that varies from token to token."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["otb"]


def otb(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """OTB (2602.07078): the optimal token baseline, PPO's clip on every token, and a token mean.

        A = G_t − Σ_i G_{i,t} W_{i,t} / Σ_i W_{i,t},    w = 1/M,    e^f = clip_A(r)
        W_t = Σ_{j≤t} (1 − 2π(y_j) + Σ_v π(v)²)

    `low` and `high` (default 0.2) are the widths of the clip region. Requires `Rollouts.proxy`. A varies within a
    sequence, so pool ratios only under `local_gradient`. w and f are our choice.
    `advantage.leave_one_out_token_baseline` is unbiased; docs/claims.md compares their variances.

    >>> import jax.numpy as jnp
    >>> proxy = jnp.array([[[1.5], [0.5]]])  # B = 3/4
    >>> otb().advantage(jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 1), bool), proxy=proxy).tolist()
    [[[0.25], [-0.75]]]
    """
    return PolicyGradient(
        advantage=advantage.optimal_token_baseline,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )
