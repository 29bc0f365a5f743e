"""The exact KL divergence, the entropy bonus, and the loss of a value function."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rljax._checks import require_between
from rljax.objective import Batch
from rljax.penalty._weighted import Tokens, weighted, weighted_sum


def entropy_bonus(entropy: Tokens, batch: Batch) -> Float[Array, ""]:
    """−Σ w · H: minus the policy's entropy, nats, from the pass that gives log π; a positive coefficient raises it.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(entropy_bonus(jnp.array([1.0, 3.0]), batch))
    -2.0
    """
    entropy, weights, live = weighted(batch, entropy=entropy)
    return -weighted_sum(weights, entropy, live)


def adaptive_entropy(entropy: Tokens, batch: Batch) -> Float[Array, ""]:
    """−Σ_t w_t c_t H_t: an entropy bonus whose coefficient c is `batch.entropy_coefficient`, a constant.

    `carried.target_entropy` writes it (Skywork-OR1). Raises ValueError if the batch has none.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.ones(2), weights=jnp.full(2, 0.5),
    ...               entropy_coefficient=jnp.full(2, 0.5))
    >>> float(adaptive_entropy(jnp.array([1.0, 3.0]), batch))
    -1.0
    """
    if batch.entropy_coefficient is None:
        raise ValueError("adaptive_entropy requires Batch.entropy_coefficient, and it is None: give "
                         "PolicyGradient(carried=carried.target_entropy())")  # fmt: skip
    entropy, coefficient, weights, live = weighted(
        batch, entropy=entropy, entropy_coefficient=batch.entropy_coefficient
    )
    return -weighted_sum(weights * coefficient, entropy, live)


def exact_kl(kl: Tokens, batch: Batch) -> Float[Array, ""]:
    """Σ w · KL(π_θ ‖ π_ref) over the whole vocabulary, nats, as `logprobs.token_kls` gives it: no sampling noise.

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
    """PPO's value loss, clipped about the values of the rollout (1707.06347). limit ≥ 0; inf never clips.

    Σ w · ½ max((v − R)², (clip(v, v_old − limit, v_old + limit) − R)²)

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> returns, old_values = jnp.ones(2), jnp.zeros(2)  # ½ ½ (max(0, (½ − 1)²) + max(1, (½ − 1)²))
    >>> float(value_loss(jnp.array([1.0, 2.0]), batch, returns=returns, old_values=old_values, limit=0.5))
    0.3125
    """
    require_between("limit", limit, 0)
    values, returns, old_values, weights, live = weighted(batch, values=values, returns=returns, old_values=old_values)
    limit, moved = jnp.asarray(limit, values.dtype), values - old_values
    near = jnp.where(jnp.abs(moved) <= limit, values, old_values + jnp.sign(moved) * limit)  # NaN if either is
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return weighted_sum(weights, 0.5 * jnp.where(clipped <= plain, plain, clipped), live)
