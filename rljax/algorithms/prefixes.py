"""Ratios that combine a token with the tokens before it."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["ctpo", "minpro", "minpro_cispo"]


def ctpo(
    *,
    log_low: float | Array = 0.025,
    log_high: float | Array = 0.05,
    log_dual: float | Array | None = 0.05,
    power: float | Array = 0.5,
) -> PolicyGradient:
    """CTPO (2605.07331): the cumulative ratio of the prefix, clipped to bounds that widen as t^power.

        A = Z,    w = 1/M,    e^f = Π_{j≤t} r_j with each token's own gradient, clipped to
        at most e^{log_high·t^power} if A ≥ 0;
        at least e^{−log_low·t^power}, at most e^{log_dual·t^power} if A < 0

    `log_low` (default 0.025), `log_high` (default 0.05) and `log_dual` (default 0.05; None for no bound) are in nats at
    t = 1; `power` (default 0.5) is the exponent of t. These defaults and the token mean are from the authors' code; the
    paper's equation has `aggregation.sequence_mean`. `minpro` uses the smallest ratio of the prefix.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 3.0, 0.5]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(ctpo().ratio(jnp.log(r), A, mask)))  # prefixes: 0.5; 1.5, above e^{0.05√2}; 0.75
    [0.5   1.0733 0.75  ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.chain(
            ratio.local_gradient(ratio.cumulative),
            partial(ratio.position_clip, log_low=log_low, log_high=log_high, log_dual=log_dual, power=power),
        ),
    )


def minpro(*, low: float | Array = 0.2, high: float | Array = 0.28) -> PolicyGradient:
    """MinPRO (2601.22718): the token's ratio times the smallest ratio before the token, then PPO's clip.

        A = Z,    w = 1/M,    e^f = clip_A(r_t · sg min_{j<t} r_j)

    `low` (default 0.2) and `high` (default 0.28) are the widths of the clip region. The ratio is from third-party
    notes, not checked against the paper; its clip and w are our choice. The weight of `minpro_cispo` has no gradient.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.2, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(minpro().ratio(jnp.log(r), A, mask)))  # 0.5, 0.5 · 1.2, 0.5 · 2
    [0.5 0.6 1. ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.chain(ratio.prefix_min, partial(ratio.clip, low=low, high=high)),
    )


def minpro_cispo(*, high: float | Array = 0.28) -> PolicyGradient:
    """MinPRO's ratio (2601.22718) under CISPO's clip: a constant weight of ∇log π, so every token keeps its gradient.

        A = Z,    w = 1/M,    e^f = min(r_t · min_{j<t} r_j, 1 + high), as a constant that multiplies ∇log π

    `high` (default 0.28) is the width of the region above 1. The ratio is from third-party notes, not checked against
    the paper; `high` and the aggregation are as in `cispo`. `minpro` has PPO's clip.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([2.0, 1.2, 0.5]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(minpro_cispo().ratio(jnp.log(r), A, mask)))  # 2, 1.2 · 2, 0.5 · 1.2
    [1.28 1.28 0.6 ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(ratio.chain(ratio.prefix_min, partial(ratio.two_sided_clip, high=high))),
    )
