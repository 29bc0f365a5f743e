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
    """The estimator k1 = ℓ: unbiased, but negative at some tokens (Schulman 2020).

    `log_ratio` is ℓ [..., T] in nats; returns [..., T] in nats. Unlike for `k2`, the expected gradient is 0, so use k1
    in a reward or as the value of `straight_through`, not as a loss.

    >>> print(k1(jnp.log(jnp.array([0.5, 1.0, 2.0]))))
    [-0.6931  0.      0.6931]
    """
    return log_ratio


def k2(log_ratio: Tokens) -> Tokens:
    """The estimator k2 = ½ℓ²: biased, never negative (Schulman 2020).

    `log_ratio` is ℓ [..., T] in nats; returns [..., T] in nats. With samples of π_θ its expected gradient is the
    gradient of KL(π_θ ‖ π_ref), unlike the gradients of `k1` and `k3`.

    >>> k2(jnp.array([-1.0, 0.0, 0.5])).tolist()
    [0.5, 0.0, 0.125]
    """
    return 0.5 * log_ratio**2


def k3(log_ratio: Tokens) -> Tokens:
    """The estimator k3 = e^{−ℓ} − 1 + ℓ: unbiased, never negative (Schulman 2020; used by GRPO, 2402.03300).

    `log_ratio` is ℓ [..., T] in nats; returns [..., T] in nats. The expected gradient is that of the other direction,
    KL(π_ref ‖ π_θ), so as a loss k3 makes π_θ cover π_ref. `straight_through(k3)` has the same value and the gradient
    of KL(π_θ ‖ π_ref). k3 is not clamped, because a clamp would set its gradient to 0.

    >>> print(k3(jnp.log(jnp.array([0.5, 1.0, 2.0]))))  # 2 − 1 − log 2, 0, ½ − 1 + log 2
    [0.307 0.    0.193]
    """
    return jnp.expm1(-log_ratio) + log_ratio


def straight_through(value: Callable, gradient: Callable = k2) -> Callable:
    """An estimator with the value of one estimator and the gradient of another.

        sg(value(ℓ) − gradient(ℓ)) + gradient(ℓ),    sg = stop-gradient

    `value` and `gradient` are estimators, such as `k1`, `k2` and `k3`. Returns an estimator for `kl(…, estimator=…)`.

    >>> import jax
    >>> value, gradient = jax.value_and_grad(straight_through(k3))(jnp.log(2.0))
    >>> print(value, gradient)  # k3's value, and the gradient log 2 (k3's own is ½)
    0.193 0.693
    """

    def estimator(log_ratio: Tokens) -> Tokens:
        return with_gradient_of(lax.stop_gradient(value(log_ratio)), gradient(log_ratio))

    return estimator


def kl(logp: Tokens, batch: Batch, *, estimator: Callable = straight_through(k3)) -> Float[Array, ""]:  # noqa: B008
    """A KL penalty toward a reference policy, estimated from the sampled tokens.

        Σ_t w_t · estimator(ℓ)_t,    ℓ_t = logp_t − ref_logp_t

    `logp` [..., T] is log π_θ in nats; `batch` has w and ref_logp; `estimator` is a function such as `k3`. Returns an
    estimate of KL(π_θ ‖ π_ref) in nats if the weights sum to 1. With the default estimator and tokens of π_θ, value and
    gradient are unbiased. `kl_corrected` is for tokens of an older policy; `exact_kl` does not sample. Raises
    ValueError if ref_logp is None.

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
    """A KL penalty from tokens of an older policy: k3 with importance weights (DeepSeek-V3.2, 2512.02556).

        Σ_t w_t · r_t · k3(ℓ_t),    r = e^{logp − old_logp},    ℓ = logp − ref_logp

    `logp` [..., T] is log π_θ in nats; `batch` has w, old_logp and ref_logp. Returns an estimate of KL(π_θ ‖ π_ref) in
    nats if the weights sum to 1. Unlike in `kl`, value and gradient are unbiased per position for samples of π_old,
    because r is differentiated. r is not clipped, so the variance may be large. Raises ValueError if ref_logp is None,
    TypeError if log-probabilities are not floating. Read in trainers' code, not checked against the paper.

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
    down = jnp.minimum(l, 0.0)  # e^{−ℓ} or r alone may overflow, so their exponents are added
    k3_less = jnp.where(l < 0, down * jnp.exp(down) - jnp.expm1(down), jnp.expm1(down - l) + l - down)  # k3 e^down
    value = lax.stop_gradient(jnp.exp(moved - down) * k3_less)
    # In r k3 = π_ref/π_old − r + r ℓ the first term is constant, so ∂(r k3) = r ℓ ∂logp, the gradient of sg(r) k2.
    return weighted_sum(weights, with_gradient_of(value, lax.stop_gradient(jnp.exp(moved)) * k2(l)), live)


def _reference(batch: Batch) -> Array:
    if batch.ref_logp is None:
        raise ValueError(
            "Batch.ref_logp = None: expected log π_ref of the batch's tokens; pass Rollouts(ref_logp=…) to make_batch"
        )
    return batch.ref_logp


def quadratic(logp: Tokens, batch: Batch) -> Float[Array, ""]:
    """The quadratic term of DRO (2405.19107).

        Σ_t w_t · ½ ℓ_t²,    ℓ = logp − old_logp

    `logp` [..., T] is log π_θ in nats; `batch` has w and old_logp. Returns a scalar in nats² if the weights sum to 1.
    DRO minimizes −(A·log π − ½βℓ²). `policy_loss` with `local_gradient` of f = 0 has the gradient of the first term; β
    times `quadratic` is the second. `kl` with `k2` uses ref_logp. Raises TypeError if logp or old_logp is not floating.

    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), advantages=jnp.zeros(2),
    ...               weights=jnp.array([0.5, 0.5]))
    >>> float(quadratic(jnp.array([1.0, -0.5]), batch))  # ½ (½ + ⅛)
    0.3125
    """
    log_ratio, weights, live = _log_ratios(logp, batch)
    return weighted_sum(weights, 0.5 * log_ratio**2, live)


def kl_cov(logp: Tokens, batch: Batch, *, share: float | Array = 2e-4) -> Float[Array, ""]:
    """KL-Cov: a penalty on the tokens whose covariance with the advantage is largest (2505.22617).

        Σ_t w_t · |ℓ_t| over the k tokens of largest covariance
        ℓ = logp − old_logp,    k = max(1, ⌊share · tokens⌋)

    `logp` [..., T] is log π_θ in nats; `batch` holds the whole optimizer step; `share` in [0, 1] is the share of the
    trained tokens. Returns a scalar in nats; the paper's coefficient is 0.1. Unlike with `clip_cov`, the tokens stay in
    the policy loss. Raises ValueError if share is outside [0, 1], TypeError if log-probabilities are not floating.

    >>> batch = Batch(mask=jnp.ones(3, bool), weights=jnp.ones(3), old_logp=jnp.array([-1.5, -2.0, -3.0]),
    ...               advantages=jnp.array([3.0, 0.0, 0.0]))
    >>> float(kl_cov(jnp.array([-1.0, -2.0, -3.0]), batch))  # |ℓ| of the first token, of covariance 2
    0.5
    """
    log_ratio, weights, live = _log_ratios(logp, batch)
    mask, c = trained(batch), covariance(logp, batch)
    chosen = largest(jnp.where(mask, c, -jnp.inf), number_of(mask, share))
    moved = jnp.where(chosen, jnp.abs(log_ratio), 0.0)
    return weighted_sum(weights, jnp.where(jnp.isnan(c), c, moved), live)  # one NaN makes every c NaN


def _log_ratios(logp: Tokens, batch: Batch) -> tuple[Array, Array, Array]:
    require_floating(logp=logp, old_logp=batch.old_logp)
    logp, old_logp, weights, live = weighted(batch, logp=logp, old_logp=batch.old_logp)
    return finite(logp - old_logp), weights, live
