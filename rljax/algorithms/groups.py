"""GRPO and those that change its normalisers, its clip's bounds or which side of the group counts."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, penalty, ratio
from rljax.objective import PolicyGradient


def grpo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """GRPO (2402.03300): standardised rewards, a mean over sequences of token means, PPO's clip on every token.

        A = Z,    w = 1/(N n),    e^f = clip_A(r)

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
    """Dr. GRPO (2503.20783): GRPO without the std, and tokens divided by the constant budget `max_length`.

        A = R − mean R,    w = 1/(N · max_length),    e^f = clip_A(r)

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


def dapo(*, low: float | Array = 0.2, high: float | Array = 0.28, dual: float | Array | None = 3.0) -> PolicyGradient:
    """DAPO (2503.14476): GRPO with a token mean and a higher upper clip; `rewards` has its sampling and penalty.

        A = Z,    w = 1/M,    e^f = clip_A(r), at most `dual` where A < 0

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
    """Balanced Aggregation (2605.04077): GRPO with a token mean on each side of the group.

        A = Z,    w = (members of the side / G) / (tokens of the side), over the groups,    e^f = clip_A(r)

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


def aepo(
    *,
    entropy_low: float | Array,
    entropy_high: float | Array,
    low: float | Array = 0.2,
    high: float | Array = 0.28,
) -> PolicyGradient:
    """AEPO (2512.12967): once the entropy has risen above `entropy_high`, completions of A < 0 are left out, until it
    has fallen below `entropy_low`, nats. Needs `Rollouts.task` and `.dropping`.

        A = (R − mean R)/(std of the task's R + 1e-6), 0 where it is < 0 while dropping,    w = 1/M,    e^f = clip_A(r)
        dropping ← H > entropy_high, or dropping and H ≥ entropy_low

    With the paper's task-relative advantage. Its thresholds are unpublished, so there are no defaults; aggregation and
    clip, and that what is left out keeps its place in the denominators, are ours: not verified from the source.

    >>> import jax.numpy as jnp
    >>> algorithm, mask = aepo(entropy_low=0.2, entropy_high=0.6), jnp.ones((1, 2, 1), bool)
    >>> dropping = algorithm.hysteresis(jnp.array(False), jnp.array(0.7))
    >>> algorithm.advantage(jnp.array([[1.0, 0.0]]), mask, task=jnp.array([0]), dropping=dropping).tolist()
    [[[0.7071], [0.0]]]
    """
    return PolicyGradient(
        advantage=advantage.without_negatives(advantage.task_relative),
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
        hysteresis=partial(penalty.hysteresis, low=entropy_low, high=entropy_high),
    )
