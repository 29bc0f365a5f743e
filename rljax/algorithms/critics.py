"""PPO: advantages from the values of a critic."""

from functools import partial

from jax import Array

from rljax import advantage, aggregation, ratio
from rljax.objective import PolicyGradient

__all__ = ["ppo"]


def ppo(
    *,
    low: float | Array = 0.2,
    high: float | Array = 0.2,
    gamma: float | Array = 1.0,
    lam: float | Array = 0.95,
) -> PolicyGradient:
    """PPO (1707.06347): GAE whitened over the batch, a token mean, and the clip on every token.

        A = whiten(Σ_{k≥0} (γλ)^k δ_{t+k}),  δ_t = R_t + γV_{t+1} − V_t,    w = 1/M,    e^f = clip_A(r)

    `low` and `high` (default 0.2) are the widths of the clip region; `gamma` (default 1) and `lam` (default 0.95) are γ
    and λ of GAE. `low`, `high` and `lam` are the paper's; `gamma`, the whitening and the token mean follow verl.
    Requires `Rollouts.values`; the critic's loss is `penalty.value_loss`. `grpo` needs no critic.

    >>> import jax.numpy as jnp
    >>> ones = jnp.ones((1, 2, 1))
    >>> A = ppo().advantage(jnp.array([[1.0, 0.0]]), ones.astype(bool), values=0.5 * ones)  # δ = ±½
    >>> A.tolist()
    [[[0.7071], [-0.7071]]]
    """
    return PolicyGradient(
        advantage=advantage.whitened(partial(advantage.generalized_advantage_estimation, gamma=gamma, lam=lam)),
        aggregation=aggregation.token_mean,
        ratio=partial(ratio.clip, low=low, high=high),
    )
