"""One ratio per sequence: the geometric mean or a power mean of the ratios of its tokens."""

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

    `low` (default 3e-4) and `high` (default 4e-4) are the clip widths of the paper's section 5.1. `gmpo` clips before
    the mean.

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
    """GSPO-token (2507.18071): the value of GSPO's ratio with each token's own gradient.

        A = Z,    w = 1/(N n),    e^f = clip_A((Π_t r_t)^{1/n}), with each token's own gradient

    For advantages that vary within a sequence. `low` (default 3e-4) and `high` (default 4e-4) are as in `gspo`.

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
    """LUSPO (2602.05261): GSPO with token sums in place of token means, so that a long sequence counts more.

        A = Z,    w = 1/N,    e^f = clip_A((Π_t r_t)^{1/n})

    `low` (default 2e-3) and `high` (default 2.5e-3) are the widths of the clip region. The loss is from TRL's
    code and the bounds (the paper's section 5.1) are from TRL's index of papers, neither checked against the paper.

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
    """GMPO (2507.20673): the geometric mean of the clipped ratios of the tokens.

        A = Z,    w = 1/(N n),    e^f = (Π_t c_t)^{1/n},  c = min(r, e^high) if A ≥ 0, max(r, e^−low) if A < 0

    `low` and `high` (default 0.4) bound ℓ itself, in nats, as in the paper. `gspo` clips the mean instead.

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

    `p` (default 2) is the exponent and may be traced. The paper anneals it over training (`holder_schedule`, which
    starts at the default) and keeps it constant during the optimizer steps of a rollout. `low` and `high` (default 0.2)
    are the widths of the clip region. p → 0 is `gspo` with these bounds.

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

    `p` (default 2), `low` and `high` (default 0.2) are as in `holder_po`, which clips after the mean. p = 1 is GRPO, p
    → 0 is GMPO with PPO's bounds. Advantages must be constant in each sequence.

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
    """HölderPO's two-sided clip (2605.12058): `holder_po` after clipping each ℓ to ±log(1 + limit).

        A = Z,    w = 1/(N n),    e^f = clip_A(((1/n) Σ_t c_t^p)^{1/p})
        c = r clipped to [1/(1 + limit), 1 + limit]

    The first clip keeps a single token from dominating the mean at large |p|; tokens beyond `limit` (default 0.2) have
    no gradient. `p` (default 2), `low` and `high` (default 0.2) are as in `holder_po`.

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
    """HölderPO's exponent p at the step of a rollout (2605.12058).

        p(step) = start + (end − start) · shape(min(step/steps, 1))

    `step` counts from 0, and may be traced. p goes from `start` (default 2) to `end` (default −2) over `steps` (default
    500) and stays there. `shape` maps [0, 1] to [0, 1]; its default, `schedule.linear`, is that of the paper's main run
    (for ALFWorld, p goes from 1 to −1). The paper also names cosine, power and cubic shapes; their formulas in
    `schedule` are ours. Returns a scalar. Raises ValueError if steps < 1. `schedule.anneal` has no defaults.

    >>> [float(holder_schedule(step)) for step in (0, 125, 250, 500, 900)]
    [2.0, 1.0, 0.0, -2.0, -2.0]
    """
    return schedule.anneal(step, start=start, end=end, steps=steps, shape=shape)
