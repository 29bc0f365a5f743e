"""One ratio per sequence: the geometric or the power mean of its tokens' ratios."""

from collections.abc import Callable
from functools import partial

from jax import Array
from jaxtyping import Float

from rljax import advantage, aggregation, ratio, schedule
from rljax._checks import require_between
from rljax.objective import PolicyGradient

__all__ = ["gmpo", "gspo", "gspo_token", "holder_po", "holder_po_token_clip", "holder_po_two_sided", "luspo"]


def gspo(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO (2507.18071): the length-normalized ratio of the sequence, then a narrow clip.

        A = Z,    w = 1/(N n),    e^f = clip_A((Π_t r_t)^{1/n})

    The bounds are the paper's, section 5.1.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 1.331]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(gspo(low=0.2, high=0.2).ratio(jnp.log(r), A, mask)))  # ∛1.331
    [1.1 1.1 1.1]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.sequence_mean, partial(ratio.clip, low=low, high=high)),
    )


def gspo_token(*, low: float | Array = 3e-4, high: float | Array = 4e-4) -> PolicyGradient:
    """GSPO-token (2507.18071): GSPO's value with each token's own gradient, for advantages that vary by token.

        A = Z,    w = 1/(N n),    e^f = clip_A((Π_t r_t)^{1/n}), with each token's own gradient

    >>> import jax, jax.numpy as jnp
    >>> ratio_of, A, mask = gspo_token().ratio, jnp.ones(2), jnp.ones(2, bool)
    >>> jax.grad(lambda ℓ: ratio_of(ℓ, A, mask)[0])(jnp.zeros(2)).tolist()  # GSPO's are ½, ½
    [1.0, 0.0]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_mean), partial(ratio.clip, low=low, high=high)),
    )


def luspo(*, low: float | Array = 2e-3, high: float | Array = 2.5e-3) -> PolicyGradient:
    """LUSPO (2602.05261): GSPO with sums over tokens in place of means, so that a long sequence counts more.

        A = Z,    w = 1/N,    e^f = clip_A((Π_t r_t)^{1/n})

    Not verified from the paper: read in TRL's code, and the bounds in its index of papers (the paper's section 5.1).

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> luspo().aggregation(lengths_1_and_3, jnp.array([[1, -1]])).tolist()
    [[[0.5, 0.0, 0.0], [0.5, 0.5, 0.5]]]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.chain(ratio.sequence_mean, partial(ratio.clip, low=low, high=high)),
    )


def gmpo(*, low: float | Array = 0.4, high: float | Array = 0.4) -> PolicyGradient:
    """GMPO (2507.20673): the geometric mean of clipped token ratios. The paper's low and high bound ℓ itself, in nats.

        A = Z,    w = 1/(N n),    e^f = (Π_t c_t)^{1/n},  c = min(r, e^high) where A ≥ 0, max(r, e^−low) where A < 0

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 9.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(gmpo(high=0.3).ratio(jnp.log(r), A, mask)))  # e^{0.3/3}
    [1.1052 1.1052 1.1052]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.log_clip, log_low=low, log_high=high), ratio.sequence_mean),
    )


def holder_po(*, p: float | Array = 2.0, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """HölderPO (2605.12058): the power mean of the sequence's ratios, then PPO's clip on the sequence.

        A = Z,    w = 1/(N n),    e^f = clip_A(((1/n) Σ_t r_t^p)^{1/p})

    The paper anneals p over training (`holder_schedule`; the default is its start) and keeps it constant within a
    rollout's updates; p may be traced. p → 0 is GSPO with these bounds.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([1.0, 1.0, 2.5]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(holder_po(p=1.0, high=1.0).ratio(jnp.log(r), A, mask)))
    [1.5 1.5 1.5]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.power_mean, p=p), partial(ratio.clip, low=low, high=high)),
    )


def holder_po_token_clip(
    *, p: float | Array = 2.0, low: float | Array = 0.2, high: float | Array = 0.2
) -> PolicyGradient:
    """HölderPO's token clip (2605.12058): PPO's clip of each token by the sign of A, then the power mean.

        A = Z,    w = 1/(N n),    e^f = ((1/n) Σ_t clip_A(r_t)^p)^{1/p}

    p = 1 is GRPO, p → 0 is GMPO with PPO's bounds. Defined for advantages constant in a sequence only.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(holder_po_token_clip().ratio(jnp.log(r), A, mask)))  # √ of the mean of ¼, 1, 1.44
    [0.9469 0.9469 0.9469]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(partial(ratio.clip, low=low, high=high), partial(ratio.power_mean, p=p)),
    )


def holder_po_two_sided(
    *,
    p: float | Array = 2.0,
    limit: float | Array = 0.2,
    low: float | Array = 0.2,
    high: float | Array = 0.2,
) -> PolicyGradient:
    """HölderPO's two-sided clip (2605.12058): each ℓ held within ±log(1 + limit), then `holder_po`.

        A = Z,    w = 1/(N n),    e^f = clip_A(((1/n) Σ_t c_t^p)^{1/p}),  c = r within 1/(1 + limit), 1 + limit

    So no single token dominates the mean at large |p|; one beyond the limit has no gradient. limit ≥ 0.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(holder_po_two_sided().ratio(jnp.log(r), A, mask)))  # √ of the mean of 1/1.44, 1, 1.44
    [1.0222 1.0222 1.0222]
    """
    require_between("limit", limit, 0)
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=ratio.chain(
            partial(ratio.two_sided_clip, low=limit / (1 + limit), high=limit),
            partial(ratio.power_mean, p=p),
            partial(ratio.clip, low=low, high=high),
        ),
    )


def holder_schedule(
    step: int | Array, *, start: float = 2.0, end: float = -2.0, steps: int = 500, shape: Callable = schedule.linear
) -> Float[Array, ""]:
    """HölderPO's p at a rollout's step: from `start` to `end` over `steps`, then `end` (2605.12058).

        p(step) = start + (end − start) · shape(min(step/steps, 1))

    Linear as in the paper's main run (1 to −1 for ALFWorld). `schedule.cosine`, `.power(n)` and `.cubic` are named in
    the paper; their formulas are ours.

    >>> [float(holder_schedule(step)) for step in (0, 125, 250, 500, 900)]
    [2.0, 1.0, 0.0, -2.0, -2.0]
    """
    return schedule.anneal(step, start=start, end=end, steps=steps, shape=shape)
