"""Ratios of a token and the tokens before it."""

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
    """CTPO (2605.07331): the cumulative ratio of the prefix, clipped in bounds that widen as t^power.

        A = Z,    w = 1/M,    e^f = Π_{j≤t} r_j, with each token's own gradient, at most e^{log_high·t^power} where
        A ≥ 0; at least e^{−log_low·t^power} and at most e^{log_dual·t^power} where A < 0

    Defaults and token mean as in the authors' code; the paper's equation has `aggregation.sequence_mean`. With
    log_dual = log_high, the default, the region is two-sided where A < 0.

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
    """MinPRO (2601.22718): the token's ratio times the least before it, then PPO's clip.

        A = Z,    w = 1/M,    e^f = clip_A(r_t · sg min_{j<t} r_j)

    Not verified from the source: the ratio is from notes on the paper, its outer form and aggregation are ours. Its
    other outer form, a constant weight, is `minpro_cispo`.

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
    """MinPRO's ratio (2601.22718) under CISPO's clip: a constant weight of ∇log π, so that no token loses its gradient.

        A = Z,    w = 1/M,    e^f = min(r_t · min_{j<t} r_j, 1 + high), as a constant that multiplies ∇log π

    So the derivative by `high` is 0. Not verified from the source: the ratio is from notes on the paper; `high` and the
    aggregation are CISPO's.

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
