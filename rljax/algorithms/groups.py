"""GRPO and its variants: other normalizers, clip bounds, or weights of the two sides of a group."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["balanced_grpo", "dapo", "dr_grpo", "grpo", "max_rl"]


def grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """GRPO (2402.03300): standardized rewards, a mean over sequences of token means, and PPO's clip on every token.

        A = Z,    w = 1/(N n),    e^f = clip_A(r)

    `low` and `high` (default 0.2) are the widths of the clip region, with PPO's values: the paper gives none, according
    to TRL's index of papers. The paper's KL penalty is `penalty.kl`. `dapo` takes a token mean.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(grpo().ratio(jnp.log(r), A, mask)))
    [0.5 1.  1.2]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.sequence_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def dr_grpo(*, max_length: float, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Dr. GRPO (2503.20783): GRPO without the std, and with token sums divided by a constant.

        A = R − mean R,    w = 1/(N · max_length),    e^f = clip_A(r)

    `max_length` is the budget of tokens per sequence. `low` and `high` (default 0.2) are the widths of the clip region,
    with PPO's values; the paper's were not checked. `grpo` divides by the std and by n.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> dr_grpo(max_length=4).aggregation(lengths_1_and_3, jnp.array([[1, -1]])).tolist()
    [[[0.125, 0.0, 0.0], [0.125, 0.125, 0.125]]]
    """
    return PolicyGradient(
        advantage=advantage.mean_baseline,
        aggregation=partial(aggregation.constant, max_length=max_length),
        ratio=partial(ratio.clip, low=low, high=high),
    )


def dapo(*, low: float | Array = 0.2, high: float | Array = 0.28, dual: float | Array | None = None) -> PolicyGradient:
    """DAPO (2503.14476): GRPO with a token mean and a larger upper bound of the clip.

        A = Z,    w = 1/M,    e^f = clip_A(r)

    `low` (default 0.2) and `high` (default 0.28) are the widths of the clip region. `dual` (default None) bounds r from
    above if A < 0 (1912.09729); it is not part of DAPO, but several trainers set it to 3. The paper's dynamic sampling
    is `rewards.informative`, its length penalty `rewards.overlong_penalty`. `grpo` takes a mean over sequences.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.0]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(dapo().ratio(jnp.log(r), A, mask)))
    [0.5  1.   1.28]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high, dual=dual),
    )


def balanced_grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """Balanced Aggregation (2605.04077): GRPO with a token mean on each side of the group, A > 0 and A < 0.

        A = Z,    w = (members of the side / G) / (tokens of the side · number of groups),    e^f = clip_A(r)

    `low` and `high` (default 0.2) are as in `grpo`; the paper's were not checked. `dapo` has one token mean per step.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> print(balanced_grpo().aggregation(lengths_1_and_3, jnp.array([[1, -1]])))
    [[[0.5   0.    0.   ]
      [0.167 0.167 0.167]]]
    """
    return PolicyGradient(
        advantage=advantage.group_relative,
        aggregation=aggregation.balanced,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def max_rl(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """MaxRL (2602.02710): rewards relative to the mean of their group, so that rare successes have larger advantages.

        A = (R − mean R)/mean R, 0 if the mean is 0,    w = 1/M,    e^f = clip_A(r)

    For rewards ≥ 0; a group of one has A = R. `low` and `high` (default 0.2) are the widths of the clip region. From
    prime-rl's and SkyRL's code, not checked against the paper; w and f are our choice. `grpo` divides by the std.

    >>> import jax.numpy as jnp
    >>> max_rl().advantage(jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.ones((1, 4, 1), bool)).tolist()
    [[[3.0], [-1.0], [-1.0], [-1.0]]]
    """
    return PolicyGradient(
        advantage=advantage.max_rl,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )
