"""The policy-gradient objective: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t, with ℓ_t = log π_θ(y_t) − log π_old(y_t).

The advantage A is computed once per rollout, the weights w (by an *aggregation*) once per optimizer step, and the
ratio f on every microbatch; m is the mask. Because w is fixed, the losses of microbatches, shards and hosts add up.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from rljax import aggregation as aggregations
from rljax._checks import accumulators, require_floating, require_mask, require_rank, require_shape
from rljax._expression import convert_fields, functions, name_of, shown
from rljax._guards import finite


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Sampled completions: P prompts with G completions each, in rows of T tokens.

    Advantages, aggregations and `Carried.update` read the fields by name. All fields are constants of the loss.
    """

    tokens: Int[Array, "P G T"]  # token ids of prompt and completion, read by `advantage.prefix_tree`
    mask: Bool[Array, "P G T"]  # true exactly at the tokens that the policy chose; false on prompts, tools, padding
    rewards: Float[Array, "P G"] | Float[Array, "P G T"]  # one per completion, or one per token
    old_logp: Float[Array, "P G T"]  # log π_old, nats: the sampling policy without top-k or top-p truncation
    segment_ids: Int[Array, "P G T"] | None = None  # 1 on prompt and completion, 0 on padding; 0 is never trained
    sampled_logp: Float[Array, "P G T"] | None = None  # log-probability in the sampler, nats; read by `correction`
    ref_logp: Float[Array, "P G T"] | None = None  # log π_ref, nats; read by `penalty` and `regression`
    proxy: Float[Array, "P G T"] | None = None  # 1 − 2π(y) + Σ π², in [0, 2]; read by `optimal_token_baseline`
    entropy: Float[Array, "P G T"] | None = None  # entropy of π_old at each token, nats; read by `carried`
    values: Float[Array, "P G T"] | None = None  # value function, in units of reward; read by GAE
    greedy_rewards: Float[Array, "P"] | None = None  # reward of each prompt's greedy completion; read by `remax`
    components: Float[Array, "P G K"] | None = None  # values of K reward functions; read by `advantage.multi_reward`
    task: Int[Array, "P"] | None = None  # task id of each prompt; read by `advantage.task_relative`
    dropping: Bool[Array, ""] | None = None  # true: drop completions with A < 0; set by `carried.entropy_hysteresis`
    entropy_coefficient: Float[Array, "P G T"] | None = None  # of the entropy bonus; set by `carried.target_entropy`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The arrays of a loss, in rows [..., T] with any leading axes.

    Ratios and penalties read the fields by name. All fields are constants of the loss.
    """

    mask: Bool[Array, "*B T"]  # true exactly at the tokens that the policy chose
    old_logp: Float[Array, "*B T"]  # log π_old, nats
    advantages: Float[Array, "*B T"]  # A, in units of reward unless standardized
    weights: Float[Array, "*B T"]  # w, from an aggregation over the whole optimizer step
    segment_ids: Int[Array, "*B T"] | None = None  # 1, 2, 3, … in packed rows, 0 = not trained; None: one per row
    tokens: Int[Array, "*B T"] | None = None  # token ids, which the trainer's model reads
    ref_logp: Float[Array, "*B T"] | None = None  # log π_ref, nats; read by KL penalties and `regression.a2po`
    divergence: Float[Array, "*B T"] | None = None  # of π_θ from π_old; read by `ratio.cumulative_divergence_mask`
    entropy_coefficient: Float[Array, "*B T"] | None = None  # read by `penalty.adaptive_entropy`


@functions
@dataclasses.dataclass(frozen=True, repr=False)
class Carried:
    """State that is carried from one rollout to the next, with functions `init` and `update` as in optax.

    `update` is called once per rollout, before the advantage is computed. `rljax.carried` has ready-made instances.
    Raises TypeError if `init` or `update` is not a function of the arguments below.
    """

    init: Callable[[], Any]
    """Initial state, called as `init() -> state`; a pytree of arrays."""
    update: Callable[..., tuple[Rollouts, Any]]
    """One update, called as `update(state, rollouts, **fields) -> (rollouts, state)`; `fields` as in PolicyGradient."""

    def __post_init__(self):
        convert_fields(self)
        _require_function("Carried.init", self.init)
        _require_function("Carried.update", self.update, "state", "rollouts")

    def __repr__(self):
        return _expression(self)


@functions
@dataclasses.dataclass(frozen=True, repr=False)
class PolicyGradient:
    """An algorithm: the three functions `advantage` (A), `aggregation` (w) and `ratio` (f) of the objective.

    Each is a plain function or a `functools.partial`. Its required keyword-only parameters, `fields` below, are read
    from the fields of the same name of `Rollouts` or, for the ratio, of `Batch`.

    A PolicyGradient is a value: two are equal, with equal hashes, if their functions and hyper-parameters are equal,
    and the repr is the expression that builds it. It is also a pytree whose leaves are the floating-point numbers bound
    to its functions, which can be traced, mapped and differentiated; functions, integers and None are part of the tree
    structure. `policy_loss` differentiates only the hyper-parameters of the ratio, because A and w are constants.
    Raises TypeError if a field other than `top_k` is not as described below, or if traced values are compared.

    >>> from functools import partial
    >>> from rljax import advantage, aggregation, ratio
    >>> PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(ratio.clip, low=0.2, high=0.28))
    PolicyGradient(advantage=group_relative, aggregation=token_mean, ratio=clip(low=0.2, high=0.28))
    >>> jax.tree.leaves(_)
    [0.2, 0.28]
    """

    advantage: Callable[..., Float[Array, "P G T"]]
    """`advantage(rewards, mask, **fields)` returns A, [P, G, T]; rewards are [P, G] or [P, G, T]."""
    aggregation: Callable[..., Float[Array, "P G T"]]
    """`aggregation(mask, sign, **fields)` returns w, [P, G, T]; sign [P, G] is −1, 0 or 1 per completion."""
    ratio: Callable[..., Float[Array, "*B T"]]
    """`ratio(log_ratio, advantages, segments, **fields)` returns f, [..., T], in nats; segments are the mask or ids."""
    carried: Carried | None = None
    """State carried from one rollout to the next, or None; any object with `init` and `update` is accepted."""
    top_k: int | None = None
    """Number of the sampling policy's most likely tokens over which `Batch.divergence` is computed, or None."""

    def __post_init__(self):
        convert_fields(self)
        _require_function("PolicyGradient.advantage", self.advantage, "rewards", "mask")
        _require_function("PolicyGradient.aggregation", self.aggregation, "mask", "sign")
        _require_function("PolicyGradient.ratio", self.ratio, "log_ratio", "advantages", "segments")
        carried: Any = self.carried
        if carried is not None and not isinstance(carried, Carried):
            if not all(callable(getattr(carried, name, None)) for name in ("init", "update")):
                raise TypeError(f"PolicyGradient.carried = {carried!r}: expected a Carried(init, update)")
            object.__setattr__(self, "carried", Carried(carried.init, carried.update))

    def __repr__(self):
        return _expression(self)


def _require_function(name: str, value: object, *arguments: str) -> None:
    """Raises TypeError unless `value` can be called with these positional arguments and the fields that it requires."""
    if not callable(value):
        raise TypeError(f"{name} = {value!r}: expected a function")
    try:
        signature = inspect.signature(value)
    except ValueError:  # some functions written in C have no signature
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(required_fields(value)))
    except TypeError as error:
        raise TypeError(f"{name} = {shown(value)}: expected a function of ({', '.join(arguments)}): {error}") from None


def _expression(value) -> str:
    fields = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    inside = ", ".join(f"{name}={shown(item)}" for name, item in fields if item is not None)
    return f"{type(value).__name__}({inside})"


def required_fields(function: Callable) -> frozenset[str]:
    """The names of the keyword-only parameters of `function` that have no default and are not bound by `partial`.

    >>> sorted(required_fields(lambda rewards, mask, *, proxy, gamma=1.0: None))
    ['proxy']
    """
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty)


def requiring(fields: frozenset[str], function: Callable) -> Callable:
    """Gives `function`, which takes `**fields`, a signature that requires `fields` as keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    plain = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in fields]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in sorted(fields)]
    function.__signature__ = inspect.Signature([*plain, *named])  # type: ignore[attr-defined]
    return function


def bind(function: Callable, source: Rollouts | Batch) -> Callable:
    """Binds the required keyword-only parameters of `function` to the fields of `source`, as constants.

    Raises ValueError if `source` lacks a field or the field is None.
    """
    name, kind, bound = name_of(function), type(source).__name__, {}
    for field in sorted(required_fields(function)):
        if field not in {f.name for f in dataclasses.fields(source)}:
            raise ValueError(f"{name} requires {field!r}: expected a field of {kind}; bind another parameter with "
                             f"partial({name}, {field}=…)")  # fmt: skip
        bound[field] = lax.stop_gradient(getattr(source, field))
        if bound[field] is None:
            raise ValueError(f"{kind}.{field} = None: expected a value, as {name} requires it; pass {kind}({field}=…)")
    return partial(function, **bound)


def trained(mask: Bool[Array, "*B T"], segment_ids: Int[Array, "*B T"] | None) -> Bool[Array, "*B T"]:
    """True at the trained tokens, [..., T]: `mask` is true and `segment_ids`, if given, is not 0."""
    mask = require_mask(mask)
    if segment_ids is None:
        return mask
    require_shape(mask.shape, "mask", segment_ids=segment_ids)
    return mask & (jnp.asarray(segment_ids) != 0)


def advantages_of(advantage: Callable, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """The advantages A of a whole rollout, without gradient.

        A = advantage(rewards, mask, **fields)

    `advantage` is as in `PolicyGradient`; `rollouts` holds all completions of each group. Returns A, [P, G, T], in
    units of reward unless it is standardized; 0 at tokens that are not trained. `make_batch` computes A and w together;
    call `advantages_of` if one rollout is split into several optimizer steps. Raises ValueError if a required field is
    missing or shapes differ, and TypeError if the mask is not boolean or A is not floating-point.

    >>> from rljax import advantage
    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[1.0, 0.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> advantages_of(advantage.mean_baseline, rollouts).tolist()
    [[[0.5], [-0.5]]]
    """
    _require_function("advantage", advantage, "rewards", "mask")
    require_mask(rollouts.mask, "P G T")
    mask = trained(rollouts.mask, rollouts.segment_ids)
    advantages = bind(advantage, rollouts)(lax.stop_gradient(rollouts.rewards), mask)
    _require_result("advantage", advantage, advantages, mask)
    return lax.stop_gradient(jnp.where(mask, advantages, 0.0))


def make_batch(algorithm: PolicyGradient, rollouts: Rollouts) -> Batch:
    """The batch of one optimizer step that trains on a whole rollout, with axes [P, G, T].

        A = advantage(rewards, mask),    w = aggregation(mask, sign of each completion's mean A)

    `algorithm` is a PolicyGradient and `rollouts` holds all completions of each group. Returns a Batch of constants. If
    the algorithm carries state, call `carried.advance` first. For several optimizer steps per rollout, compute A over
    the rollout with `advantages_of` and w over each minibatch with `weighted_batch`. Raises ValueError if a required
    field is missing or shapes differ, and TypeError if the mask is not boolean or `algorithm` is not a PolicyGradient.

    >>> from rljax import algorithms
    >>> rollouts = Rollouts(tokens=jnp.zeros((1, 2, 1), int), mask=jnp.ones((1, 2, 1), bool),
    ...                     rewards=jnp.array([[1.0, 0.0]]), old_logp=jnp.zeros((1, 2, 1)))
    >>> batch = make_batch(algorithms.dr_grpo(max_length=4), rollouts)
    >>> batch.advantages.tolist(), batch.weights.tolist()  # R − ½; 1/(2 · 4)
    ([[[0.5], [-0.5]]], [[[0.125], [0.125]]])
    """
    require_algorithm("algorithm", algorithm)
    return weighted_batch(algorithm.aggregation, rollouts, advantages_of(algorithm.advantage, rollouts))


def weighted_batch(aggregation: Callable, rollouts: Rollouts, advantages: Float[Array, "P G T"]) -> Batch:
    """The batch of one optimizer step on the minibatch `rollouts` of whole groups, with `advantages` [P, G, T].

    Compute `advantages` over the whole rollout. `aggregation` is as in `PolicyGradient`, and errors as in `make_batch`.
    """
    mask = trained(rollouts.mask, rollouts.segment_ids)
    named = ("tokens", "old_logp", "ref_logp", "entropy_coefficient")
    fields = {name: x for name in named if (x := getattr(rollouts, name)) is not None}
    require_shape(mask.shape, "mask", advantages=advantages, **fields)
    weights = bind(aggregation, rollouts)(mask, aggregations.side(advantages, mask))
    _require_result("aggregation", aggregation, weights, mask)
    return lax.stop_gradient(
        Batch(
            mask=mask,
            advantages=advantages,
            weights=jnp.where(mask, weights, 0.0),
            segment_ids=rollouts.segment_ids,
            **fields,
        )
    )


def require_algorithm(argument: str, algorithm: object) -> None:
    """Raises TypeError unless `algorithm` is a PolicyGradient; `argument` is its name in the message."""
    if not isinstance(algorithm, PolicyGradient):
        call = f"; call it, {algorithm.__name__}(…)" if inspect.isfunction(algorithm) else ""
        raise TypeError(f"{argument} = {shown(algorithm)}: expected a PolicyGradient, such as algorithms.grpo(){call}")


def _require_result(kind: str, function: Callable, result: Array, mask: Array) -> None:
    """Raises unless the `result` of a function has the shape of the mask and a floating-point dtype."""
    if jnp.shape(result) != mask.shape:
        raise ValueError(f"{kind} {name_of(function)} returned shape {jnp.shape(result)}: expected {mask.shape}, "
                         "the shape of mask")  # fmt: skip
    if not jnp.issubdtype(jnp.result_type(result), jnp.floating):
        raise TypeError(f"{kind} {name_of(function)} returned dtype {jnp.result_type(result)}: "
                        "expected floating-point numbers")  # fmt: skip


class Terms(NamedTuple):
    """The arrays of the objective, [..., T], with checked shapes; in float64 if any input is float64, else float32."""

    mask: Bool[Array, "*B T"]
    segments: Array
    """The mask, or the segment ids with 0 at masked tokens; the argument `segments` of ratios."""
    advantages: Float[Array, "*B T"]
    """A, set to 0 at masked tokens."""
    weights: Float[Array, "*B T"]
    """w, set to 0 at masked tokens."""
    log_ratio: Float[Array, "*B T"]
    """ℓ = log π_θ − log π_old in nats, set to 0 at masked tokens."""
    live: Bool[Array, "*B T"]
    """True at the tokens that contribute to the loss: mask true, w ≠ 0, A ≠ 0, and w·A ≠ 0 after rounding."""


def terms(logp: Float[Array, "*B T"], batch: Batch) -> Terms:
    """The terms of the objective, from `logp` [..., T], log π_θ in nats, and the constants of `batch`.

    Only the log-ratio has a gradient. At a token that contributes nothing to the loss, ℓ becomes 0 if it is NaN or
    infinite. At other tokens ℓ = ±∞ (one probability is 0) becomes ±1e30: e^ℓ is the same, and a mean is not NaN.
    Raises ValueError if shapes differ, and TypeError if the mask is not boolean or log-probabilities are not floating.

    >>> batch = Batch(mask=jnp.array([True, True, False]), old_logp=jnp.zeros(3), weights=jnp.full(3, 0.5),
    ...               advantages=jnp.array([1.0, 0.0, 1.0]))
    >>> found = terms(jnp.array([0.25, 0.5, jnp.nan]), batch)
    >>> found.log_ratio.tolist(), found.live.tolist()
    ([0.25, 0.5, 0.0], [True, False, False])
    """
    if jnp.ndim(batch.mask) == 0:
        require_rank("mask", jnp.asarray(batch.mask), "*B T")
    mask = trained(batch.mask, batch.segment_ids)
    advantages, weights, old_logp = lax.stop_gradient((batch.advantages, batch.weights, batch.old_logp))
    require_shape(mask.shape, "mask", logp=logp, old_logp=old_logp, advantages=advantages, weights=weights)
    require_floating(logp=logp, old_logp=old_logp)
    advantages, weights, logp, old_logp = accumulators(
        advantages=advantages, weights=weights, logp=logp, old_logp=old_logp
    )
    advantages, weights = jnp.where(mask, advantages, 0.0), jnp.where(mask, weights, 0.0)
    live = (weights != 0) & (advantages != 0) & (weights * advantages != 0)
    log_ratio = logp - old_logp
    log_ratio = jnp.where(mask & (live | jnp.isfinite(log_ratio)), finite(log_ratio), 0.0)
    segments = mask if batch.segment_ids is None else jnp.where(mask, batch.segment_ids, 0)
    return Terms(mask, segments, advantages, weights, log_ratio, live)


def earns(batch: Batch) -> Bool[Array, "*B T"]:
    """True at the tokens of `batch` that contribute to the loss, [..., T]; see `Terms.live`."""
    return terms(batch.old_logp, batch).live


def policy_loss(logp: Float[Array, "*B T"], batch: Batch, ratio: Callable) -> Float[Array, ""]:
    """The policy-gradient loss, a plain sum over the tokens of a batch.

        L = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t,    ℓ_t = logp_t − old_logp_t

    `logp` [..., T] is log π_θ(tokens[t] | tokens[<t]) in nats. `batch` holds old_logp, A, w and the mask m, all
    constants. `ratio` is f, for instance `algorithm.ratio`. Returns a scalar in units of A·w, in float32, or float64 if
    an input is float64. Add the losses of microbatches, shards and hosts without dividing, because w was computed over
    the whole optimizer step. Only `logp` and the hyper-parameters of `ratio` are differentiated.

    A token with mask false or w·A = 0 adds exactly 0 to the loss and its gradient, even if it holds NaN; if its mask is
    true and its ℓ finite, it still counts in ratios that pool over its sequence. Penalties include tokens with A = 0.

    Raises ValueError if shapes differ or the batch lacks a field that the ratio requires, and TypeError if the mask is
    not boolean, another array is not floating-point or the ratio is not a function.

    >>> from rljax import ratio
    >>> batch = Batch(mask=jnp.ones(2, bool), old_logp=jnp.zeros(2), weights=jnp.array([0.5, 0.5]),
    ...               advantages=jnp.array([1.0, -1.0]))
    >>> print(policy_loss(jnp.log(jnp.array([2.0, 0.5])), batch, ratio.token))  # −½ (1 · 2 − 1 · ½)
    -0.75
    """
    if not callable(ratio):
        raise TypeError(f"ratio is a {type(ratio).__name__}: expected a function, such as the `ratio` of an algorithm")
    _require_function("ratio", ratio, "log_ratio", "advantages", "segments")
    require_floating(advantages=batch.advantages, weights=batch.weights)
    mask, segments, A, w, ℓ, live = terms(logp, batch)
    f = bind(ratio, batch)(ℓ, A, segments)
    _require_result("ratio", ratio, f, mask)
    return -jnp.sum(jnp.where(live, w * A, 0.0) * jnp.exp(jnp.where(live, f, 0.0)))
