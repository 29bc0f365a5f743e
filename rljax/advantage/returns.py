"""Advantages from rewards-to-go along a completion: discounted, against a value function, or a greedy completion."""

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
    """The discounted reward-to-go, G_t = Σ_{j≥t} γ^{j−t} r_j over the completion's trained tokens.

    An outcome reward is paid at the last one. gamma in [0, 1].

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
    """REINFORCE++: discounted returns, whitened over the batch's trained tokens (2501.03262).

        (G_t − µ)/√(σ² + 1e-8)

    No group is needed. With γ = 1 a constant outcome reward gives 0.

    >>> print(reinforce_plus_plus(jnp.array([[3.0, 1.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return whiten(discounted_returns(rewards, mask, gamma=gamma), mask)


def reinforce_plus_plus_baseline(rewards: Rewards, mask: Mask) -> Advantages:
    """REINFORCE++-baseline: the reward less its group's mean, whitened over the batch's trained tokens (2501.03262).

    >>> print(reinforce_plus_plus_baseline(jnp.array([[9.0, 7.0]]), jnp.ones((1, 2, 3), bool)))  # ±1 over √(6/5)
    [[[ 0.9129  0.9129  0.9129]
      [-0.9129 -0.9129 -0.9129]]]
    """
    return whitened(mean_baseline)(rewards, mask)


def remax(rewards: Rewards, mask: Mask, *, greedy_rewards: Float[Array, "P"]) -> Advantages:
    """ReMax: the reward-to-go less the reward of the prompt's greedy completion, G_t − R_greedy (2310.10505).

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
    """GAE (1506.02438), over the tokens that the policy chose.

        δ_t = r_t + γ V_{t+1} − V_t,    Â_t = δ_t + γλ Â_{t+1}

    t + 1 is the completion's next trained token, whatever tool tokens lie between; past the last one V and Â are 0. An
    outcome reward is paid at the last one. `values` is V of the state before each token, read without gradient;
    Â + V, or the reward-to-go, is what the values are trained on. gamma and lam in [0, 1]. Not whitened: `whitened(…)`
    does that.

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
    """r_t [P, G, T]: a dense reward at the trained tokens, or the outcome at the last of them."""
    mask = gathered(mask, 2)
    if rewards.ndim == 3:
        return jnp.where(mask, gathered(rewards, 2), 0.0)
    later = lax.cumsum(mask.astype(jnp.int32), axis=2, reverse=True)
    return jnp.where(mask & (later == 1), rewards[..., None], 0.0)


def _backwards(step, start, *arrays: Array) -> Array:
    """What `step` returns at each time, from the last to the first; arrays are [P, G, T]."""
    _, out = lax.scan(step, start, [jnp.moveaxis(gathered(x, 2), -1, 0) for x in arrays], reverse=True)
    return jnp.moveaxis(out, 0, -1)
