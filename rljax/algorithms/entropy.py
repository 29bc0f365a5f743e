"""Control of the entropy by leaving completions out."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, carried, ratio
from rljax.objective import PolicyGradient

__all__ = ["aepo"]


def aepo(
    *,
    entropy_low: float | Array,
    entropy_high: float | Array,
    low: float | Array = 0.2,
    high: float | Array = 0.28,
) -> PolicyGradient:
    """AEPO (2512.12967): once the entropy has risen above `entropy_high`, completions of A < 0 are left out, until it
    has fallen below `entropy_low`, nats. Needs `Rollouts.task` and `.entropy`.

        A = (R − mean R)/(std of the task's R + 1e-6), 0 where it is < 0 while dropping,    w = 1/M,    e^f = clip_A(r)
        dropping ← H > entropy_high, or dropping and H ≥ entropy_low

    The advantage is the paper's task-relative one. The thresholds are unpublished, so they have no defaults; the
    derivative by them is 0. Ours, not verified from the source: the aggregation, the clip, and that completions left
    out still count in the denominators.

    >>> import jax.numpy as jnp
    >>> algorithm, mask = aepo(entropy_low=0.2, entropy_high=0.6), jnp.ones((1, 2, 1), bool)
    >>> A = algorithm.advantage(jnp.array([[1.0, 0.0]]), mask, task=jnp.array([0]), dropping=jnp.array(True))
    >>> print(A)
    [[[0.7071]
      [0.    ]]]
    """
    return PolicyGradient(
        advantage=advantage.without_negatives(advantage.task_relative),
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
        carried=carried.entropy_hysteresis(low=entropy_low, high=entropy_high),
    )
