"""Advantages from rewards-to-go: discounted returns, GAE, and a greedy baseline."""

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import SHARE, accumulators, ranges, require_shape
from rljax._sharding import gathered
from rljax.advantage._outcomes import Advantages, Mask, Rewards, checked, returns_of, trained
from rljax.advantage.combine import whiten, whitened
from rljax.advantage.group import mean_baseline


@ranges(gamma=SHARE)
def discounted_returns(rewards: Rewards, mask: Mask, *, gamma: float | Array = 1.0) -> Advantages:
    """Discounted reward-to-go over the trained tokens of the completion, without a baseline.

        A_t = G_t = Σ_{j≥t} γ^{j−t} r_j

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. An outcome reward is paid at the last
    trained token. `gamma` is the discount γ per trained token. Raises ValueError if gamma is outside [0, 1].
    `generalized_advantage_estimation` subtracts values.

    >>> discounted_returns(jnp.array([[1.0, 2.0]]), jnp.ones((1, 2, 3), bool), gamma=0.5).tolist()
    [[[0.25, 0.5, 1.0], [0.5, 1.0, 2.0]]]
    """
    rewards, mask = checked(rewards, mask)
    r = per_token(rewards, mask)
    gamma = jnp.asarray(gamma, r.dtype)

    def step(later, now):
        reward, chosen = now
        later = jnp.where(chosen, reward + gamma * later, later)
        return later, later

    return trained(_backwards(step, jnp.zeros_like(r[..., 0]), r, mask), mask)


@ranges(gamma=SHARE)
def reinforce_plus_plus(rewards: Rewards, mask: Mask, *, gamma: float | Array = 1.0) -> Advantages:
    """REINFORCE++'s advantage: discounted returns, whitened over the trained tokens of the batch (2501.03262).

        A = (G_t − µ)/√(σ² + 1e-8),    G_t as in `discounted_returns`

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `gamma` is the discount γ per trained
    token. Raises ValueError if gamma is outside [0, 1]. `reinforce_plus_plus_baseline` uses groups.

    >>> print(reinforce_plus_plus(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return whiten(discounted_returns(rewards, mask, gamma=gamma), mask)


def reinforce_plus_plus_baseline(rewards: Rewards, mask: Mask) -> Advantages:
    """REINFORCE++-baseline's advantage: the reward minus its group's mean, whitened over the batch (2501.03262).

        A = whiten(R − mean R)

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. `reinforce_plus_plus` has no group
    baseline; `group_relative` divides by the std of the group.

    >>> print(reinforce_plus_plus_baseline(jnp.array([[9.0, 7.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return whitened(mean_baseline)(rewards, mask)


def remax(rewards: Rewards, mask: Mask, *, greedy_rewards: Float[Array, "P"]) -> Advantages:
    """ReMax's advantage: the reward-to-go minus the reward of the prompt's greedy completion (2310.10505).

        A = G_t − R_greedy

    Takes `rewards` [P, G] or [P, G, T], `mask` [P, G, T] and `greedy_rewards` [P]; returns A [P, G, T]. `leave_one_out`
    takes the baseline from the group's other completions instead.

    >>> remax(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool), greedy_rewards=jnp.array([1.0])).tolist()
    [[[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]
    """
    rewards, mask = checked(rewards, mask)
    require_shape(mask.shape[:1], "mask's first axis", greedy_rewards=greedy_rewards)
    rewards, greedy_rewards = accumulators(rewards=rewards, greedy_rewards=greedy_rewards)
    return trained(returns_of(rewards, mask) - greedy_rewards[:, None, None], mask)


@ranges(gamma=SHARE, lam=SHARE)
def generalized_advantage_estimation(
    rewards: Rewards,
    mask: Mask,
    *,
    values: Float[Array, "P G T"],
    gamma: float | Array = 1.0,
    lam: float | Array = 0.95,
) -> Advantages:
    """Generalized advantage estimation (GAE) over the trained tokens (1506.02438).

        δ_t = r_t + γ V_{t+1} − V_t,    A_t = δ_t + γλ A_{t+1}

    Takes `rewards` [P, G] or [P, G, T] and `mask` [P, G, T]; returns A [P, G, T]. Raises ValueError if gamma or lam is
    outside [0, 1]. t + 1 is the next trained token: tool tokens are skipped, and after the last trained token V and A
    are 0. An outcome reward is paid at the last trained token. `penalty.value_loss` trains the values, on A + V or on
    the reward-to-go. `whitened` standardizes the result. `discounted_returns` needs no values.

    Args:
      values: V of the state before each token, [P, G, T], in the unit of `rewards`; without gradient.
      gamma: Discount γ per trained token, in [0, 1].
      lam: λ, in [0, 1]: 0 uses one step, 1 the whole return.

    >>> values = jnp.array([[[0.5, 0.25, 0.0], [0.0, 0.0, 0.0]]])  # δ = −¼, −¼, 1 and 0, 0, 0
    >>> rewards, mask = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2, 3), bool)
    >>> generalized_advantage_estimation(rewards, mask, values=values, lam=0.5).tolist()
    [[[-0.125, 0.25, 1.0], [0.0, 0.0, 0.0]]]
    """
    rewards, mask = checked(rewards, mask)
    require_shape(mask.shape, "mask", values=values)
    rewards, values = accumulators(rewards=rewards, values=values)
    values = gathered(jnp.where(mask, values, 0.0), 2)
    gamma, lam = (jnp.asarray(x, values.dtype) for x in (gamma, lam))

    def step(later, now):
        next_value, next_advantage = later
        reward, value, chosen = now
        advantage = reward + gamma * next_value - value + gamma * lam * next_advantage
        return (jnp.where(chosen, value, next_value), jnp.where(chosen, advantage, next_advantage)), advantage

    zeros = jnp.zeros_like(values[..., 0])
    return trained(_backwards(step, (zeros, zeros), per_token(rewards, mask), values, mask), mask)


def per_token(rewards: Array, mask: Array) -> Array:
    """r_t [P, G, T]: a dense reward at the trained tokens, or the outcome at the last trained token."""
    mask = gathered(mask, 2)
    if rewards.ndim == 3:
        return jnp.where(mask, gathered(rewards, 2), 0.0)
    later = lax.cumsum(mask.astype(jnp.int32), axis=2, reverse=True)
    return jnp.where(mask & (later == 1), rewards[..., None], 0.0)


def _backwards(step, start, *arrays: Array) -> Array:
    """The outputs of `step`, scanned from the last token to the first; arrays are [P, G, T]."""
    _, out = lax.scan(step, start, [jnp.moveaxis(gathered(x, 2), -1, 0) for x in arrays], reverse=True)
    return jnp.moveaxis(out, 0, -1)
