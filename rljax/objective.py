"""The objective: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t, with ℓ_t = log π_θ(y_t) − log π_old(y_t).

A (advantage) is made once a rollout, w (aggregation) once an optimizer step, f (ratio) on every microbatch. With w
fixed for the step, microbatches, shards and hosts simply add.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial

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


def segments_of(batch: Batch) -> Array:
    """`segments` as ratios read them: the mask, or ids that are 0 where the mask is false."""
    mask = require_mask(batch.mask)
    return mask if batch.segment_ids is None else jnp.where(mask, batch.segment_ids, 0)


def earns(batch: Batch) -> Bool[Array, "*B T"]:
    """True at the tokens that the loss sees: mask true, w ≠ 0, A ≠ 0, and w·A ≠ 0 (it may underflow)."""
    require_shape(batch.mask.shape, "mask", advantages=batch.advantages, weights=batch.weights)
    weights, advantages = accumulators(weights=batch.weights, advantages=batch.advantages)
    return batch.mask & (weights != 0) & (advantages != 0) & (weights * advantages != 0)


def log_ratios(logp: Float[Array, "*B T"], batch: Batch) -> Float[Array, "*B T"]:
    """ℓ = log π_θ − log π_old, in at least float32; 0 where the mask is false.

    A token that earns nothing still counts in the ratio of its sequence, but not with a NaN or an infinity. Elsewhere
    ±∞ (a policy that gives the token no mass) is ±1e30: e^ℓ is the same, and pools of it are no NaN.
    """
    mask = require_mask(batch.mask)
    require_shape(mask.shape, "mask", logp=logp, old_logp=batch.old_logp)
    require_floating(logp=logp, old_logp=batch.old_logp)
    logp, old_logp = accumulators(logp=logp, old_logp=batch.old_logp)
    log_ratio = logp - old_logp
    return jnp.where(mask & (earns(batch) | jnp.isfinite(log_ratio)), finite(log_ratio), 0.0)


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
    mask = require_mask(batch.mask)
    if mask.ndim == 0:
        require_rank("mask", mask, "*B T")
    require_shape(mask.shape, "mask", logp=logp, advantages=batch.advantages, weights=batch.weights)
    require_floating(advantages=batch.advantages, weights=batch.weights)
    if batch.segment_ids is not None:
        require_shape(mask.shape, "mask", segment_ids=batch.segment_ids)
    advantages, weights, log_ratio = accumulators(
        advantages=batch.advantages, weights=batch.weights, log_ratio=log_ratios(logp, batch)
    )
    advantages, weights = lax.stop_gradient((jnp.where(mask, advantages, 0.0), jnp.where(mask, weights, 0.0)))
    f = bind(ratio, batch)(log_ratio, advantages, segments_of(batch))
    live = earns(batch)
    return -jnp.sum(jnp.where(live, weights * advantages, 0.0) * jnp.exp(jnp.where(live, f, 0.0)))
