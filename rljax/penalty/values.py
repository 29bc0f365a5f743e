"""Exact KL penalty, entropy bonuses and the loss of a value function."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax._checks import require_between
from rljax.objective import Batch
from rljax.penalty._weighted import Tokens, weighted, weighted_sum


def entropy_bonus(entropy: Tokens, batch: Batch) -> Float[Array, ""]:
    """The entropy bonus −Σ_t w_t · H_t; with a positive coefficient, minimizing the loss raises the entropy.

    `entropy` [..., T] is H in nats, for instance from `logprobs.token_logps`; `batch` has w. Returns a scalar in nats
    if the weights sum to 1. `adaptive_entropy` has a coefficient per token.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(entropy_bonus(jnp.array([1.0, 3.0]), batch))
    -2.0
    """
    entropy, weights, live = weighted(batch, entropy=entropy)
    return -weighted_sum(weights, entropy, live)


def adaptive_entropy(entropy: Tokens, batch: Batch) -> Float[Array, ""]:
    """An entropy bonus with a coefficient per token, −Σ_t w_t · c_t · H_t (Skywork-OR1, 2505.22312).

    `entropy` [..., T] is H in nats; `batch` has w and c = `batch.entropy_coefficient`, which `carried.target_entropy`
    sets. Returns a scalar in nats if the weights sum to 1. `entropy_bonus` has c = 1. Raises ValueError if c is None.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.ones(2), weights=jnp.full(2, 0.5),
    ...               entropy_coefficient=jnp.full(2, 0.5))
    >>> float(adaptive_entropy(jnp.array([1.0, 3.0]), batch))
    -1.0
    """
    if batch.entropy_coefficient is None:
        raise ValueError("Batch.entropy_coefficient = None: expected [*B, T]; set "
                         "PolicyGradient(carried=carried.target_entropy())")  # fmt: skip
    entropy, coefficient, weights, live = weighted(
        batch, entropy=entropy, entropy_coefficient=batch.entropy_coefficient
    )
    return -weighted_sum(weights * coefficient, entropy, live)


def exact_kl(kl: Tokens, batch: Batch) -> Float[Array, ""]:
    """A KL penalty from the exact divergence per position, Σ_t w_t · KL(π_θ ‖ π_ref)_t.

    `kl` [..., T] is the divergence over the whole vocabulary in nats, from `logprobs.token_kls`; `batch` has w. Returns
    a scalar in nats if the weights sum to 1. `penalty.kl` uses sampled tokens only.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(exact_kl(jnp.array([0.1, 0.3]), batch))
    0.2
    """
    kl, weights, live = weighted(batch, kl=kl)
    return weighted_sum(weights, kl, live)


def value_loss(
    values: Tokens, batch: Batch, *, returns: Tokens, old_values: Tokens, limit: float | Array
) -> Float[Array, ""]:
    """The value loss of PPO, clipped around the values of the rollout (1707.06347).

        Σ_t w_t · ½ max((v − R)², (clip(v, v_old − limit, v_old + limit) − R)²)

    `advantage.generalized_advantage_estimation` computes A from the values.

    Args:
      values: Predicted values v, [..., T], in units of reward; the only argument with a gradient.
      batch: Batch with w and the mask.
      returns: Targets R, [..., T], in units of reward.
      old_values: Values v_old of the rollout, [..., T], in units of reward.
      limit: Greatest distance from v_old without clipping, in units of reward; limit ≥ 0, and inf never clips.

    Returns:
      The loss, a scalar, in units of reward².

    Raises:
      ValueError: If limit < 0.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> returns, old_values = jnp.ones(2), jnp.zeros(2)  # ½ ½ (max(0, (½ − 1)²) + max(1, (½ − 1)²))
    >>> float(value_loss(jnp.array([1.0, 2.0]), batch, returns=returns, old_values=old_values, limit=0.5))
    0.3125
    """
    require_between("limit", limit, 0)
    values, returns, old_values, weights, live = weighted(batch, values=values, returns=returns, old_values=old_values)
    limit, moved = jnp.asarray(limit, values.dtype), values - old_values
    near = jnp.where(jnp.abs(moved) <= limit, values, old_values + jnp.sign(moved) * limit)  # keeps NaN
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return weighted_sum(weights, 0.5 * jnp.where(clipped <= plain, plain, clipped), live)
