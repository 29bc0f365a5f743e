"""Policy gradients with a baseline that is not learned: other completions, a greedy completion, or the batch."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["opo", "reinforce_plus_plus", "remax", "rloo"]


def rloo(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """RLOO (2402.14740): a leave-one-out baseline, a mean over sequences of token sums, and the clipped sequence ratio.

        A = R_i − mean_{j≠i} R_j,    w = 1/N,    e^f = clip_A(Π_t r_t), with each token's own gradient

    `low` and `high` (default 0.2) are the widths of the clip region. On-policy, this is REINFORCE on whole sequences;
    the clip for off-policy steps and its bounds are our choice. `grpo` clips each token.

    >>> import jax.numpy as jnp
    >>> r, A, mask = jnp.array([0.5, 1.0, 2.2]), jnp.ones(3), jnp.ones(3, bool)
    >>> print(jnp.exp(rloo().ratio(jnp.log(r), A, mask)))  # their product, 1.1, on each
    [1.1 1.1 1.1]
    """
    return PolicyGradient(
        advantage=advantage.leave_one_out,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.chain(ratio.local_gradient(ratio.sequence_sum), partial(ratio.clip, low=low, high=high)),
    )


def reinforce_plus_plus(*, low: float | Array = 0.2, high: float | Array = 0.2) -> PolicyGradient:
    """REINFORCE++ (2501.03262): returns whitened over the batch, without a group, and PPO's clip.

        A = whiten(G_t),    w = 1/M,    e^f = clip_A(r)

    `low` and `high` (default 0.2) are the widths of the clip region, as in PPO. Returns are not discounted. The
    whitening over tokens is as in verl. `advantage.reinforce_plus_plus_baseline` is the paper's form for groups.

    >>> import jax.numpy as jnp
    >>> print(reinforce_plus_plus().advantage(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return PolicyGradient(
        advantage=advantage.reinforce_plus_plus,
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )


def opo() -> PolicyGradient:
    """OPO (2505.23585): the length-weighted baseline, for exactly on-policy steps without a clip.

        A = R_i − Σ_j n_j R_j / Σ_j n_j,    w = 1/M,    e^f = r

    The token mean is our choice, not verified from the paper. `rloo` averages the other completions without weights.

    >>> import jax.numpy as jnp
    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> opo().advantage(jnp.array([[1.0, 0.0]]), lengths_1_and_3).tolist()
    [[[0.75, 0.0, 0.0], [-0.25, -0.25, -0.25]]]
    """
    return PolicyGradient(
        advantage=advantage.length_weighted,
        aggregation=aggregation.token_mean,
        ratio=ratio.token,
    )


def remax() -> PolicyGradient:
    """ReMax (2310.10505): the reward of the greedy completion as the baseline, and a mean over sequences of token sums.

        A = G_t − R_greedy,    w = 1/N,    e^f = r

    Requires `Rollouts.greedy_rewards`. For on-policy steps only: nothing is clipped. `rloo` needs no greedy completion.

    >>> import jax.numpy as jnp
    >>> mask = jnp.ones((1, 2, 3), bool)
    >>> remax().advantage(jnp.array([[1.0, 0.0]]), mask, greedy_rewards=jnp.array([1.0])).tolist()
    [[[0.0, 0.0, 0.0], [-1.0, -1.0, -1.0]]]
    """
    return PolicyGradient(
        advantage=advantage.remax,
        aggregation=partial(aggregation.constant, max_length=1),
        ratio=ratio.token,
    )
