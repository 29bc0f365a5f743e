"""Penalties on the distance from another policy: estimators of a KL divergence, DRO's quadratic term, KL-Cov."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._guards import with_gradient_of
from rljax.objective import Batch, log_ratios
from rljax.penalty._weighted import Tokens, weighted, weighted_sum
from rljax.penalty.selection import covariance, largest, number_of


def k1(log_ratio: Tokens) -> Tokens:
    """ℓ: unbiased, may be negative; as a loss its expected gradient is 0: put it in a reward, or straight-through.

    >>> print(k1(jnp.log(jnp.array([0.5, 1.0, 2.0]))))
    [-0.6931  0.      0.6931]
    """
    return log_ratio


def k2(log_ratio: Tokens) -> Tokens:
    """½ℓ²: biased, never negative; its expected on-policy gradient is that of the KL.

    >>> k2(jnp.array([-1.0, 0.0, 0.5])).tolist()
    [0.5, 0.0, 0.125]
    """
    return 0.5 * log_ratio**2


def k3(log_ratio: Tokens) -> Tokens:
    """e^{−ℓ} − 1 + ℓ: unbiased, never negative (GRPO's). Not clamped: a clamp would zero its gradient.

    >>> print(k3(jnp.log(jnp.array([0.5, 1.0, 2.0]))))  # 2 − 1 − log 2, 0, ½ − 1 + log 2
    [0.307 0.    0.193]
    """
    return jnp.expm1(-log_ratio) + log_ratio


def straight_through(value: Callable, gradient: Callable = k2) -> Callable:
    """An estimator with the value of one and the gradient of another, k2's unless said.

    sg(value(ℓ) − gradient(ℓ)) + gradient(ℓ)

    >>> import jax
    >>> value, gradient = jax.value_and_grad(straight_through(k3))(jnp.log(2.0))
    >>> print(value, gradient)  # k3's value, and log 2 where k3's own gradient is ½
    0.193 0.693
    """

    def estimator(log_ratio: Tokens) -> Tokens:
        return with_gradient_of(lax.stop_gradient(value(log_ratio)), gradient(log_ratio))

    return estimator


def kl(logp: Tokens, batch: Batch, *, estimator: Callable = k3) -> Float[Array, ""]:
    """Σ w · k(ℓ) with ℓ = logp − ref_logp: an estimate of KL(π_θ ‖ π_ref), nats, where the weights sum to one.

    ValueError where `batch.ref_logp` is None or shapes differ.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]), ref_logp=jnp.log(jnp.array([0.25, 0.5])))
    >>> print(kl(jnp.log(jnp.array([0.5, 0.5])), batch))  # ½ (½ − 1 + log 2)
    0.0966
    """
    if batch.ref_logp is None:
        raise ValueError("Batch.ref_logp is None: give Batch(ref_logp=…), log π_ref of the batch's tokens")
    logp, ref_logp, weights, live = weighted(batch, logp=logp, ref_logp=batch.ref_logp)
    return weighted_sum(weights, estimator(jnp.where(live, logp - ref_logp, 0.0)), live)


def quadratic(logp: Tokens, batch: Batch) -> Float[Array, ""]:
    """DRO's term, Σ w · ½ℓ² with ℓ = logp − old_logp (2405.19107).

    Its loss is −(A·log π − ½βℓ²): `local_gradient` of a constant ratio (A times the gradient of log π), plus β times
    this.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(quadratic(jnp.array([1.0, -0.5]), batch))  # ½ (½ + ⅛)
    0.3125
    """
    log_ratio, weights, live = weighted(batch, log_ratio=log_ratios(logp, batch))
    return weighted_sum(weights, 0.5 * log_ratio**2, live)


def kl_cov(logp: Tokens, batch: Batch, *, share: float | Array = 2e-4) -> Float[Array, ""]:
    """KL-Cov: Σ w · |ℓ| over the k tokens of largest covariance, k = max(1, ⌊share · tokens⌋) (2505.22617).

    ℓ = logp − old_logp. The paper's coefficient is 0.1. share in [0, 1]. Of the batch given: microbatches do not add.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.array([-1.5, -2.0, -3.0]),
    ...               advantages=jnp.array([3.0, 0.0, 0.0]))
    >>> float(kl_cov(jnp.array([-1.0, -2.0, -3.0]), batch))  # |ℓ| of the first token, of covariance 2
    0.5
    """
    log_ratio, weights, live = weighted(batch, log_ratio=log_ratios(logp, batch))
    chosen = largest(jnp.where(batch.mask, covariance(logp, batch), -jnp.inf), number_of(batch.mask, share))
    return weighted_sum(weights, jnp.where(chosen, jnp.abs(log_ratio), 0.0), live)
