"""Trust regions other than PPO's clip: constant weights, smooth gates, and bounds on a divergence."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["cispo", "cppo", "dppo", "sapo", "topr", "vespo"]


def cispo(*, low: float | Array | None = None, high: float | Array = 0.28) -> PolicyGradient:
    """CISPO (2506.13585): the clipped ratio as a constant weight of ∇log π, so that every token keeps its gradient.

        A = Z,    w = 1/M,    e^f = min(r, 1 + high), as a constant that multiplies ∇log π

    `low` (default None, as in the paper) adds a lower bound 1 − low. `high` (default 0.28) is a default of trainers;
    the paper tunes it, but we did not check its value. In `dapo`, tokens outside the region lose their gradient.

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
    """SAPO (2511.20347): a smooth gate of each token's ratio instead of a clip.

        A = Z,    w = 1/(N n),    e^f = (4/τ) σ(τ(r − 1)),  τ = positive if A > 0, negative otherwise

    The temperatures `positive` (default 1) and `negative` (default 1.05) are the paper's. `grpo` has a clip instead.

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
    """DPPO (2602.04879): a trust region bounded by the change of the token's probability, not of its ratio.

        A = Z,    w = 1/M,    e^f = 0 if A > 0 and p − q > high, or A < 0 and p − q < −low;
        otherwise min(r, cap), as a constant that multiplies ∇log π

    p = π_θ(y) and q = π_old(y). `low` and `high` (default 0.15) bound the change of probability and `cap` (default 3)
    the weight. The paper's other form bounds a KL divergence: `ratio.kl_mask` with low = high = 0.05. The ratio and its
    defaults are as in verl; A and w are our choice. `cppo` bounds the divergence of the sequence.

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
    """CPPO (2606.10968): a budget of divergence per sequence, spent token by token.

        A = Z,    w = 1/M
        e^f = r if A(r − 1) ≤ 0 or (c_t D_t ≤ limit and S_t ≤ limit + slack·C_{t−1}), else 0
        c_t falls linearly from 1 to `least`,  S_t = Σ_{j≤t} c_j D_j,  C_t = Σ_{j≤t} c_j

    `limit` (default 0.15) and `slack` (default 0.02; the paper has 0.015 to 0.02) are thresholds, `least` (default 0.8)
    is the coefficient c of the last token. Requires `Batch.divergence`, which is D: `divergence.total_variation` over
    the `top_k` (default 20) likeliest tokens of the old policy. A and w are our choice. `dppo` bounds single tokens.

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
    """TOPR (2503.14286): weight 1 if A ≥ 0, and an importance weight truncated at 1 if A < 0.

        A = R − mean R,    w = 1/N,    e^f = 1 if A ≥ 0, min(1, (Π_t r_t)^{1/n}) if A < 0, as a constant that
        multiplies ∇log π

    From ROLL's code, not checked against the paper; the paper's equation, as quoted in ROLL, has Π_t r_t instead of its
    n-th root and the sign of the reward instead of A's. A and w are our choice. `vespo` has a smooth weight.

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
    """VESPO (2602.10693): a smooth weight of the whole sequence's ratio instead of a clip.

        A = Z,    w = 1/M,    e^f = R^k e^{λ(1 − R)},  R = Π_t r_t, as a constant that multiplies ∇log π
        each ℓ is clipped to [−20, 20], log R to [log 1e-8, 20]

    k and λ are `k_positive` (default 2) and `lam_positive` (default 3) if A ≥ 0, `k_negative` (default 3) and
    `lam_negative` (default 2) if A < 0. From TRL's code, not checked against the paper. `topr` truncates the weight.

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
