"""Entropy control that drops negative completions."""

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
    """AEPO (2512.12967): drops completions with A < 0 once the entropy is too high, until it is low again.

        A = (R − mean R)/(std of the task's R + 1e-6), or 0 if A < 0 and dropping
        w = 1/M,    e^f = clip_A(r)
        dropping ← H > entropy_high, or dropping and H ≥ entropy_low

    H is the mean entropy of the rollout's trained tokens. `entropy_low` and `entropy_high` are in nats and have no
    defaults, since the paper does not publish them. `low` (default 0.2) and `high` (default 0.28) are the widths of the
    clip region. Requires `Rollouts.task` and `Rollouts.entropy`. `grpo` keeps all completions. The advantage is the
    paper's; the aggregation, the clip, and counting dropped completions in the denominators are our choice.

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
