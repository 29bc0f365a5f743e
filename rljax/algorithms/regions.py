"""Trust regions other than PPO's clip: constant weights, smooth gates, bounds on a divergence."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["cispo", "cppo", "dppo", "sapo", "topr", "vespo"]


def cispo(*, low: float | Array | None = None, high: float | Array = 0.28) -> PolicyGradient:
    """CISPO (2506.13585): the clipped ratio as a weight of ∇log π, so that no token loses its gradient.

        A = Z,    w = 1/M,    e^f = min(r, 1 + high), as a constant that multiplies ∇log π

    So the derivative by the bounds is 0. No lower bound, as in the paper; `low` adds one. high = 0.28 is a default of
    trainers: the paper tunes it, and its value was not verified.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(cispo().ratio(jnp.log(r), A, mask)))
    [0.5  1.   1.28]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(partial(ratio.two_sided_clip, low=low, high=high)),
    )


def sapo(*, positive: float | Array = 1.0, negative: float | Array = 1.05) -> PolicyGradient:
    """SAPO (2511.20347): a smooth gate of each token's ratio in place of a clip.

        A = Z,    w = 1/(N n),    e^f = (4/τ) σ(τ(r − 1)),  τ = positive where A > 0, negative elsewhere

    The temperatures are the paper's.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.7, 1.0, 1.3]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(sapo().ratio(jnp.log(r), A, mask)))  # 4σ(−0.3), 4σ(0), 4σ(0.3)
    [1.7022 2.     2.2978]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.soft_gate, positive=positive, negative=negative),
    )


def dppo(*, low: float | Array = 0.15, high: float | Array = 0.15, cap: float | Array = 3.0) -> PolicyGradient:
    """DPPO (2602.04879): a trust region by the change of the token's probability, not of its ratio.

        A = Z,    w = 1/M,    e^f = 0 where A > 0 and p − q > high, or A < 0 and p − q < −low;  else sg(min(r, cap))

    Its other form bounds a KL divergence, `ratio.kl_mask` with low = high = 0.05. The ratio and its defaults are as in
    verl; advantage and aggregation are ours, not verified from the paper. The derivative by each bound is 0.

    >>> import jax.numpy as jnp
    >>> r, A, mask, q = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool), jnp.array([0.5, 0.5, 0.4])
    >>> print(jnp.exp(dppo().ratio(jnp.log(r), A, mask, old_logp=jnp.log(q))))  # p − q = −0.25, 0, 0.4
    [0.5 1.  0. ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.total_variation_mask, low=low, high=high, cap=cap),
    )


def cppo(
    *, limit: float | Array = 0.15, slack: float | Array = 0.02, least: float | Array = 0.8, top_k: int = 20
) -> PolicyGradient:
    """CPPO (2606.10968): a budget of divergence for each sequence, spent token by token. Needs `Batch.divergence`.

        A = Z,    w = 1/M,    e^f = r where A(r − 1) ≤ 0, or c_t D_t ≤ limit and S_t ≤ limit + slack·C_{t−1};  else 0
        c_t from 1 down to `least`,  S_t = Σ_{j≤t} c_j D_j,  C_t = Σ_{j≤t} c_j

    D is `divergence.total_variation` over the old policy's `top_k` likeliest tokens, as in the paper, whose slack is
    0.015 to 0.02. Advantage and aggregation are ours, not verified from the source. The derivative by each bound is 0.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.full(3, 1.1), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(cppo().ratio(jnp.log(r), A, mask, divergence=jnp.full(3, 0.1))))  # spent .1, .19, .27
    [1.1 0.  0. ]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.cumulative_divergence_mask, limit=limit, slack=slack, least=least),
        top_k=top_k,
    )


def topr() -> PolicyGradient:
    """TOPR (2503.14286): no importance weight where A ≥ 0, one truncated at 1 where A < 0.

        A = R − mean R,    w = 1/N,    e^f = 1 where A ≥ 0, min(1, (Π_t r_t)^{1/n}) where A < 0, as a constant that
        multiplies ∇log π

    Ours: the group's mean as baseline and the sum over tokens. Not verified from the paper: the weight was read in
    ROLL's code, which quotes an equation with the ratio of the whole sequence, Π_t r_t, in place of its n-th root, and
    with the sign of the reward in place of that of A.

    >>> import jax.numpy as jnp
    >>> r, mask = jnp.array([[0.25, 1.0], [0.25, 1.0]]), jnp.ones((2, 2), bool)
    >>> print(jnp.exp(topr().ratio(jnp.log(r), jnp.array([[1.0, 1.0], [-1.0, -1.0]]), mask)))
    [[1.  1. ]
     [0.5 0.5]]
    """
    return PolicyGradient(
        advantage=advantage.mean_baseline,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.local_gradient(ratio.chain(ratio.sequence_mean, ratio.taper)),
    )


def vespo(
    *,
    k_positive: float | Array = 2.0,
    lam_positive: float | Array = 3.0,
    k_negative: float | Array = 3.0,
    lam_negative: float | Array = 2.0,
) -> PolicyGradient:
    """VESPO (2602.10693): a smooth weight of the whole sequence's ratio, in place of a clip.

        A = Z,    w = 1/M,    e^f = R^k e^{λ(1 − R)},  R = Π_t r_t, as a constant that multiplies ∇log π
        (k, λ) = (k_positive, lam_positive) where A ≥ 0, (k_negative, lam_negative) elsewhere
        each ℓ within ±20, log R within log 1e-8, 20

    So the derivative by k and λ is 0. Not verified from the paper: weight, defaults and token mean were read in TRL's
    code; the advantage is GRPO's.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([4.0, 0.5]), jnp.ones(2), jnp.ones(2, bool)
    >>> print(jnp.exp(vespo().ratio(jnp.log(r), A, mask)))  # R = 2: 2² e^{−3}
    [0.1991 0.1991]
    """
    gate = partial(
        ratio.gamma_gate,
        k_positive=k_positive,
        lam_positive=lam_positive,
        k_negative=k_negative,
        lam_negative=lam_negative,
    )
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=ratio.local_gradient(ratio.chain(partial(ratio.clamp, limit=20), ratio.sequence_sum, gate)),
    )
