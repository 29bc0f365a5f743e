"""Training metrics, computed by the same code for every algorithm.

Add the `policy_sums` of microbatches, shards or optimizer steps, then call `policy_summary` on the total. r = e^ℓ is
π_θ/π_old. A mean over no token is NaN. Functions raise ValueError if shapes differ, TypeError if a mask is not boolean.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Real

from rljax import _segments
from rljax._checks import accumulators, require_mask, require_shape
from rljax.aggregation import side
from rljax.objective import Batch, policy_loss, terms
from rljax.rewards import informative

__all__ = [
    "policy_summary",
    "policy_sums",
    "position_summary",
    "position_sums",
    "reward_summary",
    "sign_length_gap",
    "variance_proxies",
]


def policy_sums(logp: Float[Array, "*B T"], batch: Batch, ratio: Callable) -> dict[str, Float[Array, ""]]:
    """The sums over the tokens of a batch from which `policy_summary` computes its metrics.

    `logp`, `batch` and `ratio` are the arguments of `policy_loss`. Returns scalars by name: `tokens`, `weight` (Σw),
    `clipped` (Σw where w·A ≠ 0 and ∂L/∂logp = 0), `clipped_positive` (its part with A > 0), and `k1`, `k3`, `ratio` and
    `ratio_squared` (sums of −ℓ, r − 1 − ℓ, r and r²). Errors as in `policy_loss`. `position_sums` sums per position.

    >>> from rljax import algorithms
    >>> batch = Batch(mask=jnp.ones(4, bool), old_logp=jnp.zeros(4), weights=jnp.full(4, 0.25), advantages=jnp.ones(4))
    >>> sums = policy_sums(jnp.log(jnp.array([0.5, 1.0, 1.5, 2.0])), batch, algorithms.grpo().ratio)
    >>> print(sums["clipped"], sums["weight"], sums["ratio"])  # 1.5 and 2 are beyond 1.2
    0.5 1.0 5.0
    """
    gradient = jax.grad(policy_loss)(logp, batch, ratio)
    mask, _, advantages, weights, log_ratio, live = terms(logp, batch)
    moved = jnp.where(mask, jnp.exp(log_ratio), 0.0)
    cut = jnp.where(live & (gradient == 0), weights, 0.0)
    return {
        "tokens": jnp.sum(mask).astype(log_ratio.dtype),
        "weight": jnp.sum(weights),
        "clipped": jnp.sum(cut),
        "clipped_positive": jnp.sum(jnp.where(advantages > 0, cut, 0.0)),
        "k1": -jnp.sum(log_ratio),
        "k3": jnp.sum(jnp.expm1(log_ratio) - log_ratio),
        "ratio": jnp.sum(moved),
        "ratio_squared": jnp.sum(moved**2),
    }


def policy_summary(sums: Mapping[str, Float[Array, ""]]) -> dict[str, Float[Array, ""]]:
    """The metrics of one or more optimizer steps, from the sums over all their tokens.

    - `clip_share`: Σw of the tokens with w·A ≠ 0 and ∂L/∂logp = 0, divided by the Σw of all tokens;
    - `clip_share_positive`, `clip_share_negative`: the parts of `clip_share` with A > 0 and with A < 0;
    - `kl`, `kl_k1`: token means of r − 1 − ℓ and of −ℓ, estimates of KL(π_old ‖ π_θ) in nats;
    - `ratio_mean`: token mean of r;
    - `effective_samples`: (Σr)²/(n Σr²) over the n trained tokens: 1 if all r are equal, 0 if Σr² overflows.

    `sums` is a result of `policy_sums` or a sum of several. Returns scalars by name; shares and ratios have no unit.
    `correction.report` has corresponding statistics of the rollout mismatch.

    >>> names = ("tokens", "weight", "clipped", "clipped_positive", "k1", "k3", "ratio", "ratio_squared")
    >>> sums = dict(zip(names, jnp.array([4.0, 1.0, 0.5, 0.5, 0.0, 0.5, 5.0, 7.5])))
    >>> summary = policy_summary(sums)
    >>> print(summary["clip_share"], summary["kl"], summary["effective_samples"])  # 25/(4 · 7.5)
    0.5 0.125 0.8333
    """

    return {
        "clip_share": _mean(sums["clipped"], sums["weight"]),
        "clip_share_positive": _mean(sums["clipped_positive"], sums["weight"]),
        "clip_share_negative": _mean(sums["clipped"] - sums["clipped_positive"], sums["weight"]),
        "kl": _mean(sums["k3"], sums["tokens"]),
        "kl_k1": _mean(sums["k1"], sums["tokens"]),
        "ratio_mean": _mean(sums["ratio"], sums["tokens"]),
        "effective_samples": _effective(sums["ratio"], sums["ratio_squared"], sums["tokens"]),
    }


def position_sums(
    logp: Float[Array, "*B T"], batch: Batch, ratio: Callable, *, edges: Sequence[int] = (16, 64, 256, 1024, 4096)
) -> dict[str, Float[Array, "K"]]:
    """The sums per bin of positions from which `position_summary` computes its metrics.

    A token's position is its ordinal among the trained tokens of its sequence. Bin 0 has the positions up to edges[0],
    bin i those in (edges[i − 1], edges[i]], and the last bin all above. `policy_sums` has no bins.

    Args:
      logp: log π_θ, [..., T], in nats.
      batch: Batch of `policy_loss`.
      ratio: Ratio f of `policy_loss`.
      edges: Last position of each bin but the last, strictly increasing.

    Returns:
      Sums by name, [len(edges) + 1] each.

    Raises:
      ValueError: If edges are empty or not strictly increasing, or as in `policy_loss`.

    >>> from rljax import algorithms
    >>> batch = Batch(mask=jnp.ones(4, bool), old_logp=jnp.zeros(4), weights=jnp.full(4, 0.25), advantages=jnp.ones(4))
    >>> sums = position_sums(jnp.array([0.25, 0.5, -0.5, 0.5]), batch, algorithms.grpo().ratio, edges=(2,))
    >>> print(sums["tokens"], sums["cumulative"], sums["clipped_positive"])  # Σ ℓ = 0.25, 0.75, 0.25, 0.75
    [2. 2.] [1. 1.] [0.5  0.25]
    """
    if list(edges) != sorted(set(edges)) or not edges:
        raise ValueError(f"edges = {edges!r}: expected strictly increasing positions")
    gradient = jax.grad(policy_loss)(logp, batch, ratio)
    mask, segments, advantages, weights, log_ratio, live = terms(logp, batch)
    cumulative = _segments.cumulative(log_ratio, segments)
    cut = jnp.where(live & (gradient == 0), weights, 0.0)
    place = jnp.searchsorted(jnp.asarray(edges, jnp.int32), _segments.ordinal(segments), side="left")[..., None]
    places = jnp.arange(len(edges) + 1, dtype=place.dtype).reshape((1,) * (place.ndim - 1) + (-1,))
    here = mask[..., None] & (place == places)

    def total(x):
        return jnp.sum(jnp.where(here, x[..., None], 0.0), axis=tuple(range(x.ndim)))

    return {
        "tokens": total(jnp.ones_like(log_ratio)),
        "weight": total(weights),
        "clipped_positive": total(jnp.where(advantages > 0, cut, 0.0)),
        "clipped_negative": total(jnp.where(advantages < 0, cut, 0.0)),
        "cumulative": total(cumulative),
        "cumulative_squared": total(cumulative**2),
    }


def position_summary(sums: Mapping[str, Float[Array, "K"]]) -> dict[str, Float[Array, "K"]]:
    """The metrics per bin of positions, from `position_sums`.

    - `clip_share_positive`, `clip_share_negative`: as in `policy_summary`, divided by the Σw of the bin;
    - `drift`, `spread`: mean and standard deviation of Σ_{j≤t} ℓ_j in nats, the value of `ratio.cumulative`.

    `sums` is a result of `position_sums` or a sum of several. Returns arrays [K] by name, one entry per bin, NaN for
    bins without tokens. `policy_summary` has the metrics over all positions.

    >>> names = ("tokens", "weight", "clipped_positive", "clipped_negative", "cumulative", "cumulative_squared")
    >>> sums = {name: jnp.array([x]) for name, x in zip(names, (2.0, 0.5, 0.25, 0.0, 1.0, 1.0))}
    >>> {name: x.tolist() for name, x in position_summary(sums).items()}
    {'clip_share_positive': [0.5], 'clip_share_negative': [0.0], 'drift': [0.5], 'spread': [0.5]}
    """
    drift = _mean(sums["cumulative"], sums["tokens"])
    square = _mean(sums["cumulative_squared"], sums["tokens"])
    variance = jnp.where(jnp.isfinite(square), square - drift**2, square)
    return {
        "clip_share_positive": _mean(sums["clipped_positive"], sums["weight"]),
        "clip_share_negative": _mean(sums["clipped_negative"], sums["weight"]),
        "drift": drift,
        "spread": jnp.sqrt(jnp.maximum(variance, 0.0)),
    }


def sign_length_gap(advantages: Float[Array, "P G T"], mask: Bool[Array, "P G T"]) -> Float[Array, ""]:
    """Mean length of the completions with A > 0 minus the mean length of those with A < 0 (2605.04077).

    `advantages` is A [P, G, T], and `mask` [P, G, T] is true at the trained tokens; the sign of a completion is the
    sign of its mean A. Returns a scalar in tokens; 0 unless both signs are present. `aggregation.token_mean` couples
    the sign of an update to this gap, and `aggregation.balanced` does not.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> float(sign_length_gap(jnp.array([[[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]]), lengths_1_and_3))
    -2.0
    """
    sign = side(advantages, mask)
    lengths = jnp.sum(mask, axis=-1).astype(sign.dtype)
    up, down = (_over(jnp.sum(jnp.where(sign == s, lengths, 0.0)), jnp.sum(sign == s)) for s in (1, -1))
    return jnp.where(jnp.any(sign > 0) & jnp.any(sign < 0), up - down, 0.0)


def variance_proxies(
    advantages: Float[Array, "P G T"],
    mask: Bool[Array, "P G T"],
    *,
    proxy: Float[Array, "P G T"],
    gradient_norm: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """Estimates of the noise of a policy gradient from logit-gradient proxies (2602.07078; form of verl 0.9.1).

        signal S = ‖g‖²,    total P = mean_i Ā_i² W_i,    noise = max(0, (P − S)/(B − 1))

    The mean is over the B completions with a trained token; Ā_i is the mean of A over completion i, and W_i the sum of
    its proxies, floored at 0. Unlike the other metrics, these estimates need the gradient norm of the parameters.

    Args:
      advantages: A, [P, G, T].
      mask: True at the trained tokens, [P, G, T].
      proxy: Squared norm of the logit gradient, [P, G, T], in [0, 2]; `TokenStats.proxy`.
      gradient_norm: ‖g‖, the norm of the gradient of the loss with respect to the parameters, a scalar.

    Returns:
      `signal`, `total` and `noise` by name, scalars.

    >>> advantages, proxy = jnp.array([[[2.0], [0.0]]]), jnp.array([[[0.5], [1.0]]])  # P = (4 · ½ + 0)/2
    >>> found = variance_proxies(advantages, jnp.ones((1, 2, 1), bool), proxy=proxy, gradient_norm=jnp.float32(0.5))
    >>> {name: float(x) for name, x in found.items()}
    {'signal': 0.25, 'total': 1.0, 'noise': 0.75}
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape, "mask", advantages=advantages, proxy=proxy)
    require_shape((), "a scalar", gradient_norm=gradient_norm)
    advantages, proxy = accumulators(advantages=advantages, proxy=proxy)
    n = jnp.sum(mask, axis=-1).astype(proxy.dtype)
    mean = jnp.sum(jnp.where(mask, advantages, 0.0), axis=-1) / jnp.maximum(n, 1)
    energy = jnp.sum(jnp.where(mask, jnp.maximum(proxy, 0.0), 0.0), axis=-1)
    count = jnp.sum(n > 0).astype(proxy.dtype)
    signal, total = jnp.asarray(gradient_norm).astype(proxy.dtype) ** 2, _over(jnp.sum(mean**2 * energy), count)
    return {"signal": signal, "total": total, "noise": jnp.maximum(0.0, (total - signal) / jnp.maximum(count - 1, 1))}


def _over(numerator: Array, denominator: Array) -> Array:
    """The quotient; 0 if the denominator is 0."""
    empty = denominator == 0
    return jnp.where(empty, 0.0, numerator / jnp.where(empty, 1, denominator).astype(numerator.dtype))


def _mean(total: Array, count: Array) -> Array:
    """The quotient; NaN if the count is 0."""
    return jnp.divide(total, count)


def _effective(total: Array, squares: Array, count: Array) -> Array:
    """(Σr)²/(n Σr²); 0 if Σr² overflows."""
    overflows = jnp.isinf(squares)
    total, squares = jnp.where(overflows, 0.0, total), jnp.where(overflows, 1.0, squares)
    return _mean(_mean(total, count) * total, squares)


def reward_summary(
    rewards: Real[Array, "P G"], mask: Bool[Array, "P G T"], signal: Bool[Array, "P"] | None = None
) -> dict[str, Float[Array, ""]]:
    """The reward metrics of a rollout, over the completions that have a trained token.

    - `reward`, `reward_std`: mean and standard deviation (divisor N), in units of reward;
    - `length`: mean number of trained tokens;
    - `informative`: share of the groups for which `signal` is true.

    `rewards` is [P, G], `mask` [P, G, T] is true at the trained tokens, and `signal` [P] is by default the result of
    `rewards.informative`. Returns scalars by name. `policy_summary` has the metrics of the updates.

    >>> found = reward_summary(jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.ones((2, 2, 3), bool))
    >>> {name: float(x) for name, x in found.items()}
    {'reward': 0.75, 'reward_std': 0.433, 'length': 3.0, 'informative': 0.5}
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape[:2], "mask's leading axes", rewards=rewards)
    signal = informative(rewards, mask) if signal is None else signal
    require_shape(mask.shape[:1], "mask's first axis", signal=signal)
    (rewards,) = accumulators(rewards=rewards)
    present, lengths = jnp.any(mask, axis=-1), jnp.sum(mask, axis=-1).astype(rewards.dtype)

    def share(values, among):
        return _mean(jnp.sum(jnp.where(among, values, 0.0)), jnp.sum(among).astype(rewards.dtype))

    mean = share(rewards, present)
    return {
        "reward": mean,
        "reward_std": jnp.sqrt(share((rewards - mean) ** 2, present)),
        "length": share(lengths, present),
        "informative": share(jnp.asarray(signal).astype(rewards.dtype), jnp.any(present, axis=-1)),
    }
