"""Penalties on the distance from another policy: estimators of a KL divergence, DRO's quadratic term, KL-Cov."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from rljax._checks import require_floating
from rljax._guards import finite, with_gradient_of
from rljax.objective import Batch
from rljax.penalty._weighted import Tokens, trained, weighted, weighted_sum
from rljax.penalty.selection import covariance, largest, number_of


def k1(log_ratio: Tokens) -> Tokens:
    """ℓ: unbiased, may be negative. As a loss its expected gradient is 0: put it in a reward, or straight-through.

    >>> print(k1(jnp.log(jnp.array([0.5, 1.0, 2.0]))))
    [-0.6931  0.      0.6931]
    """
    return log_ratio


def k2(log_ratio: Tokens) -> Tokens:
    """½ℓ²: biased, never negative. Its expected on-policy gradient is that of KL(π_θ ‖ π_ref).

    >>> k2(jnp.array([-1.0, 0.0, 0.5])).tolist()
    [0.5, 0.0, 0.125]
    """
    return 0.5 * log_ratio**2


def k3(log_ratio: Tokens) -> Tokens:
    """e^{−ℓ} − 1 + ℓ: unbiased, never negative (GRPO's). Its gradient is that of the forward KL(π_ref ‖ π_θ).

    As a loss it therefore covers π_ref's mass instead of seeking its mode; `straight_through(k3)` has its value and the
    gradient of KL(π_θ ‖ π_ref). Not clamped: a clamp would zero its gradient.

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


def kl(logp: Tokens, batch: Batch, *, estimator: Callable = straight_through(k3)) -> Float[Array, ""]:  # noqa: B008
    """Σ w · k(ℓ) with ℓ = logp − ref_logp: an estimate of KL(π_θ ‖ π_ref), nats, if the weights sum to one.

    The default has the value of k3 and the gradient of k2, so that on-policy both are those of KL(π_θ ‖ π_ref). For
    tokens of an older policy: `kl_corrected`.

    ValueError if `batch.ref_logp` is None or shapes differ.

    >>> import jax
    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]), ref_logp=jnp.log(jnp.array([0.25, 0.5])))
    >>> value, gradient = jax.value_and_grad(kl)(jnp.log(jnp.array([0.5, 0.5])), batch)
    >>> print(value, gradient)  # ½ (½ − 1 + log 2), and ½ log 2 at the first token
    0.0966 [0.3466 0.    ]
    """
    logp, ref_logp, weights, live = weighted(batch, logp=logp, ref_logp=_reference(batch))
    return weighted_sum(weights, estimator(logp - ref_logp), live)


def kl_corrected(logp: Tokens, batch: Batch) -> Float[Array, ""]:
    """Σ w · r · k3(ℓ): k3 importance-weighted, KL(π_θ ‖ π_ref) from tokens of π_old (DeepSeek-V3.2, 2512.02556).

        r = e^{logp − old_logp},    ℓ = logp − ref_logp

    r is differentiated, so under samples of π_old, position by position, value and gradient are exactly those of
    KL(π_θ ‖ π_ref), in expectation. r is not clipped: far from π_old its variance is large. Not verified: read in
    trainers' code, no paper text. ValueError if `batch.ref_logp` is None or shapes differ.

    >>> import jax
    >>> batch = Batch(mask=jnp.ones(1, bool), old_logp=jnp.log(jnp.array([0.25])), advantages=jnp.zeros(1),
    ...               weights=jnp.ones(1), ref_logp=jnp.log(jnp.array([0.25])))
    >>> value, gradient = jax.value_and_grad(kl_corrected)(jnp.log(jnp.array([0.5])), batch)  # r = 2, ℓ = log 2
    >>> print(value, gradient)  # 2 (½ − 1 + log 2), and that + 2 (1 − ½): 2 log 2
    0.3863 [1.3863]
    """
    require_floating(logp=logp, old_logp=batch.old_logp)
    ref_logp = _reference(batch)
    logp, ref_logp, old_logp, weights, live = weighted(batch, logp=logp, ref_logp=ref_logp, old_logp=batch.old_logp)
    l, moved = finite(logp - ref_logp), finite(logp - old_logp)
    down = jnp.minimum(l, 0.0)  # e^{−ℓ} and r are multiplied before either overflows
    k3_less = jnp.where(l < 0, down * jnp.exp(down) - jnp.expm1(down), jnp.expm1(down - l) + l - down)  # k3 e^down
    value = lax.stop_gradient(jnp.exp(moved - down) * k3_less)
    # In r k3 = π_ref/π_old − r + r ℓ the first term is constant, so ∂(r k3) = r ℓ ∂logp, which is that of sg(r) k2.
    return weighted_sum(weights, with_gradient_of(value, lax.stop_gradient(jnp.exp(moved)) * k2(l)), live)


def _reference(batch: Batch) -> Array:
    if batch.ref_logp is None:
        raise ValueError("Batch.ref_logp is None: give Batch(ref_logp=…), log π_ref of the batch's tokens")
    return batch.ref_logp


def quadratic(logp: Tokens, batch: Batch) -> Float[Array, ""]:
    """DRO's term, Σ w · ½ℓ² with ℓ = logp − old_logp (2405.19107).

    Its loss is −(A·log π − ½βℓ²): `local_gradient` of a constant ratio (A times the gradient of log π), plus β times
    this.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(quadratic(jnp.array([1.0, -0.5]), batch))  # ½ (½ + ⅛)
    0.3125
    """
    log_ratio, weights, live = _log_ratios(logp, batch)
    return weighted_sum(weights, 0.5 * log_ratio**2, live)


def kl_cov(logp: Tokens, batch: Batch, *, share: float | Array = 2e-4) -> Float[Array, ""]:
    """KL-Cov: Σ w · |ℓ| over the k tokens of largest covariance, k = max(1, ⌊share · tokens⌋) (2505.22617).

    ℓ = logp − old_logp. The paper's coefficient is 0.1. share in [0, 1]. Of the batch given: microbatches do not add.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.array([-1.5, -2.0, -3.0]),
    ...               advantages=jnp.array([3.0, 0.0, 0.0]))
    >>> float(kl_cov(jnp.array([-1.0, -2.0, -3.0]), batch))  # |ℓ| of the first token, of covariance 2
    0.5
    """
    log_ratio, weights, live = _log_ratios(logp, batch)
    mask, c = trained(batch), covariance(logp, batch)
    chosen = largest(jnp.where(mask, c, -jnp.inf), number_of(mask, share))
    moved = jnp.where(chosen, jnp.abs(log_ratio), 0.0)
    return weighted_sum(weights, jnp.where(jnp.isnan(c), c, moved), live)  # among NaNs none is the largest


def _log_ratios(logp: Tokens, batch: Batch) -> tuple[Array, Array, Array]:
    """ℓ = logp − old_logp, the weights, and where they count."""
    require_floating(logp=logp, old_logp=batch.old_logp)
    logp, old_logp, weights, live = weighted(batch, logp=logp, old_logp=batch.old_logp)
    return finite(logp - old_logp), weights, live
