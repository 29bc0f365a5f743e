"""The objective: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t, with ℓ_t = log π_θ(y_t) − log π_old(y_t).

A (advantage) is made once a rollout, w (aggregation) once an optimizer step, f (ratio) on every microbatch. With w
fixed for the step, microbatches, shards and hosts simply add.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from rljax._checks import accumulators, require_floating, require_mask, require_rank, require_shape
from rljax._guards import finite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What was sampled: P prompts, G completions each, rows of T tokens. An advantage reads any field by its name."""

    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]  # true exactly where the policy chose the token
    rewards: Float[Array, "P G"] | Float[Array, "P G T"]
    old_logp: Float[Array, "P G T"]  # of the policy that sampled, untruncated
    segment_ids: Int[Array, "P G T"] | None = None  # prompt and completion 1, padding 0
    sampled_logp: Float[Array, "P G T"] | None = None  # of the distribution really drawn from
    ref_logp: Float[Array, "P G T"] | None = None  # of the reference policy
    proxy: Float[Array, "P G T"] | None = None  # 1 − 2π(y) + Σπ²
    entropy: Float[Array, "P G T"] | None = None  # nats
    values: Float[Array, "P G T"] | None = None
    greedy_rewards: Float[Array, "P"] | None = None  # of the prompt's greedy completion
    components: Float[Array, "P G K"] | None = None  # the rewards that `rewards` is made of
    task: Int[Array, "P"] | None = None
    dropping: Bool[Array, ""] | None = None  # whether completions of A < 0 are left out (an algorithm's hysteresis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """What a loss reads: rows `[*B, T]` of any leading axes. A ratio reads any field by its name."""

    mask: Bool[Array, "*B T"]
    old_logp: Float[Array, "*B T"]
    advantages: Float[Array, "*B T"]
    weights: Float[Array, "*B T"]  # of an aggregation over the whole optimizer step
    segment_ids: Int[Array, "*B T"] | None = None  # packed rows: 1, 2, 3, …; None: every row is one sequence
    tokens: Int[Array, "*B T"] | None = None
    ref_logp: Float[Array, "*B T"] | None = None
    divergence: Float[Array, "*B T"] | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PolicyGradient:
    """An algorithm: three functions, A, w and f of the objective. (As a pytree it is static: it has no leaves.)"""

    advantage: Callable[..., Float[Array, "P G T"]]
    """A, what a token deserves: `f(rewards [P, G] or [P, G, T], mask [P, G, T], **fields of Rollouts)`."""
    aggregation: Callable[..., Float[Array, "P G T"]]
    """w, how much a token counts: `f(mask [P, G, T], sign [P, G])`."""
    ratio: Callable[..., Float[Array, "*B T"]]
    """f, how far the policy moved: `f(log_ratio, advantages, segments, **fields of Batch) -> log_ratio`."""
    hysteresis: Callable[..., Bool[Array, ""]] | None = None
    """What is remembered from one rollout to the next: `f(dropping, entropy) -> dropping`, false at first, entropy
    the rollout's mean in nats. An advantage reads it as `Rollouts.dropping`."""
    top_k: int | None = None
    """How many of the sampling policy's likeliest tokens `Batch.divergence` is taken over, if the ratio needs it."""


def required_fields(function: Callable) -> frozenset[str]:
    """The names of a function's required keyword-only parameters; one bound by `functools.partial` is not required.

    >>> sorted(required_fields(lambda rewards, mask, *, proxy, gamma=1.0: None))
    ['proxy']
    """
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)


def requiring(fields: frozenset[str], function: Callable) -> Callable:
    """`function(…, **bound)`, declared to require those keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in fields]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(fields)]
    function.__signature__ = inspect.Signature([*plain, *named])  # type: ignore[attr-defined]
    return function


def bind(function: Callable, source: Rollouts | Batch) -> Callable:
    """The function with its required keyword-only parameters taken from the fields of those names.

    Raises ValueError, naming the field, where the source has none of that name or it is None.
    """
    name, kind, bound = _name(function), type(source).__name__, {}
    for field in sorted(required_fields(function)):
        if field not in {f.name for f in dataclasses.fields(source)}:
            raise ValueError(f"{name} requires {field!r}, which is no field of {kind}: bind it, partial(…, {field}=…)")
        bound[field] = getattr(source, field)
        if bound[field] is None:
            raise ValueError(f"{name} requires {field!r}, and {kind}.{field} is None: give {kind}({field}=…)")
    return partial(function, **bound)


def _name(function: Callable) -> str:
    return _name(function.func) if isinstance(function, partial) else getattr(function, "__name__", repr(function))


def advantages_of(advantage: Callable, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """A of a rollout: the advantage function on the fields it names, without gradient, 0 where the mask is false.

    ValueError where a field that it names is missing, or shapes do not fit; TypeError where the mask is not boolean.
    """
    mask = require_mask(rollouts.mask, "P G T")
    advantages = bind(advantage, rollouts)(rollouts.rewards, mask)
    require_shape(mask.shape, "mask", advantages=advantages)
    return lax.stop_gradient(jnp.where(mask, advantages, 0.0))


class Terms(NamedTuple):
    """The arrays of the objective, `[*B, T]`, checked against each other once and in the dtype of sums."""

    mask: Bool[Array, "*B T"]
    segments: Array
    """What ratios read: the mask, or the segment ids with 0 where the mask is false."""
    advantages: Float[Array, "*B T"]
    """A; 0 where the mask is false."""
    weights: Float[Array, "*B T"]
    """w; 0 where the mask is false."""
    log_ratio: Float[Array, "*B T"]
    """ℓ = log π_θ − log π_old; 0 where the mask is false."""
    live: Bool[Array, "*B T"]
    """True at the tokens that contribute to the loss: mask true, w ≠ 0, A ≠ 0, and w·A ≠ 0 (it may underflow)."""


def terms(logp: Float[Array, "*B T"], batch: Batch) -> Terms:
    """The terms of the objective at log π_θ = `logp`; only ℓ has a gradient.

    A token that contributes nothing still counts in the ratio of its sequence, but not if its ℓ is NaN or infinite.
    Elsewhere ±∞ (a policy that gives the token no mass) becomes ±1e30: e^ℓ is the same, and pools of it are not NaN.

    Raises ValueError if shapes differ, TypeError if the mask is not boolean or log-probabilities are not floating.

    >>> batch = Batch(mask=jnp.array([True, True, False]), old_logp=jnp.zeros(3), weights=jnp.full(3, 0.5),
    ...               advantages=jnp.array([1.0, 0.0, 1.0]))
    >>> found = terms(jnp.array([0.25, 0.5, jnp.nan]), batch)
    >>> found.log_ratio.tolist(), found.live.tolist()
    ([0.25, 0.5, 0.0], [True, False, False])
    """
    mask = require_mask(batch.mask)
    if mask.ndim == 0:
        require_rank("mask", mask, "*B T")
    advantages, weights, old_logp, ids = batch.advantages, batch.weights, batch.old_logp, batch.segment_ids
    require_shape(mask.shape, "mask", logp=logp, old_logp=old_logp, advantages=advantages, weights=weights)
    require_floating(logp=logp, old_logp=old_logp)
    if ids is not None:
        require_shape(mask.shape, "mask", segment_ids=ids)
    advantages, weights, logp, old_logp = accumulators(
        advantages=advantages, weights=weights, logp=logp, old_logp=old_logp
    )
    advantages, weights = lax.stop_gradient((jnp.where(mask, advantages, 0.0), jnp.where(mask, weights, 0.0)))
    live = (weights != 0) & (advantages != 0) & (weights * advantages != 0)
    log_ratio = logp - old_logp
    log_ratio = jnp.where(mask & (live | jnp.isfinite(log_ratio)), finite(log_ratio), 0.0)
    return Terms(mask, mask if ids is None else jnp.where(mask, ids, 0), advantages, weights, log_ratio, live)


def segments_of(batch: Batch) -> Array:
    """`segments` as ratios read them: the mask, or ids that are 0 where the mask is false."""
    return terms(batch.old_logp, batch).segments


def earns(batch: Batch) -> Bool[Array, "*B T"]:
    """True at the tokens that contribute to the loss, as `Terms.live`."""
    return terms(batch.old_logp, batch).live


def log_ratios(logp: Float[Array, "*B T"], batch: Batch) -> Float[Array, "*B T"]:
    """ℓ = log π_θ − log π_old, in at least float32, as `Terms.log_ratio`."""
    return terms(logp, batch).log_ratio


def policy_loss(logp: Float[Array, "*B T"], batch: Batch, ratio: Callable) -> Float[Array, ""]:
    """The loss of a policy gradient, a plain sum over the batch's tokens.

        L = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t,    ℓ_t = logp_t − old_logp_t

    `logp [*B, T]` holds log π_θ(tokens[t] | tokens[<t]), nats; `ratio` is f. The sums of microbatches, shards and
    hosts add to the sum of the whole, since the weights were made over the whole optimizer step. Only `logp` is
    differentiated. A token with mask false or w·A = 0 contributes exactly 0, value and gradient, whatever it holds
    (as a part of its sequence's ratio it is read while its ℓ is finite).

    Raises ValueError where shapes differ or the ratio names a field that the batch lacks; TypeError for a mask that
    is not boolean or a ratio that is no function.

    >>> from rljax import ratio
    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), weights=jnp.array([0.5, 0.5]),
    ...               advantages=jnp.array([1.0, -1.0]))
    >>> print(policy_loss(jnp.log(jnp.array([2.0, 0.5])), batch, ratio.token))  # −½ (1 · 2 − 1 · ½)
    -0.75
    """
    if not callable(ratio):
        raise TypeError(f"ratio is a {type(ratio).__name__}: expected a function, such as the `ratio` of an algorithm")
    require_floating(advantages=batch.advantages, weights=batch.weights)
    _, segments, A, w, ℓ, live = terms(logp, batch)
    f = bind(ratio, batch)(ℓ, A, segments)
    return -jnp.sum(jnp.where(live, w * A, 0.0) * jnp.exp(jnp.where(live, f, 0.0)))
