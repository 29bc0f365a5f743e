"""The objective: L(θ) = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t, with ℓ_t = log π_θ(y_t) − log π_old(y_t).

A (advantage) is computed once per rollout, w (aggregation) once per optimizer step, f (ratio) on every microbatch. With
w fixed for the step, the sums of microbatches, shards and hosts add up to the sum of the whole.
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
    """Sampled completions: P prompts, G completions each, rows of T tokens. Advantages and aggregations read its fields
    by name; all of them are constants."""

    tokens: Int[Array, "P G T"]
    mask: Bool[Array, "P G T"]  # true exactly where the policy chose the token
    rewards: Float[Array, "P G"] | Float[Array, "P G T"]
    old_logp: Float[Array, "P G T"]  # of the policy that sampled, untruncated
    segment_ids: Int[Array, "P G T"] | None = None  # prompt and completion 1, padding 0: 0 is never trained
    sampled_logp: Float[Array, "P G T"] | None = None  # of the distribution really drawn from
    ref_logp: Float[Array, "P G T"] | None = None  # of the reference policy
    proxy: Float[Array, "P G T"] | None = None  # 1 − 2π(y) + Σπ²
    entropy: Float[Array, "P G T"] | None = None  # nats
    values: Float[Array, "P G T"] | None = None
    greedy_rewards: Float[Array, "P"] | None = None  # of the prompt's greedy completion
    components: Float[Array, "P G K"] | None = None  # the rewards that `rewards` is made of
    task: Int[Array, "P"] | None = None
    dropping: Bool[Array, ""] | None = None  # whether completions of A < 0 are left out (`carried.entropy_hysteresis`)
    entropy_coefficient: Float[Array, "P G T"] | None = None  # of an entropy bonus (`carried.target_entropy`)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """The arrays of a loss: rows `[*B, T]` of any leading axes. A ratio reads its fields by name; all are constants."""

    mask: Bool[Array, "*B T"]
    old_logp: Float[Array, "*B T"]
    advantages: Float[Array, "*B T"]
    weights: Float[Array, "*B T"]  # of an aggregation over the whole optimizer step
    segment_ids: Int[Array, "*B T"] | None = None  # packed rows: 1, 2, 3, …; None: every row is one sequence
    tokens: Int[Array, "*B T"] | None = None
    ref_logp: Float[Array, "*B T"] | None = None
    divergence: Float[Array, "*B T"] | None = None
    entropy_coefficient: Float[Array, "*B T"] | None = None


@functions
@dataclasses.dataclass(frozen=True, repr=False)
class Carried:
    """State carried from rollout to rollout, in optax's form; `update` is called once, before the advantage.

    Plain functions or `functools.partial`s of them, as in `PolicyGradient`. `rljax.carried` has some.
    """

    init: Callable[[], Any]
    """`init() -> state`, a pytree of arrays."""
    update: Callable[..., tuple[Rollouts, Any]]
    """`update(state, rollouts, **fields of Rollouts) -> (rollouts, state)`."""

    def __post_init__(self):
        convert_fields(self)
        _require_function("Carried.init", self.init)
        _require_function("Carried.update", self.update, "state", "rollouts")

    def __repr__(self):
        return _expression(self)


@functions
@dataclasses.dataclass(frozen=True, repr=False)
class PolicyGradient:
    """An algorithm: three functions, A, w and f of the objective.

    It is a value: two algorithms are equal, with equal hashes, if their functions and hyper-parameters are, and its
    repr reads as the expression that made it. It is a pytree: the numbers bound to its functions are its leaves, so
    they may be traced, mapped by `jax.vmap` and differentiated; functions, counts and None are structure. Only those of
    the ratio have a derivative in `policy_loss`: A and w are constants, whatever they were computed from. Comparing
    traced hyper-parameters raises TypeError. Functions may be plain ones or `functools.partial`s of them.

    Raises TypeError if a field is not a function that takes the arguments below.

    >>> from functools import partial
    >>> from rljax import advantage, aggregation, ratio
    >>> PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(ratio.clip, low=0.2, high=0.28))
    PolicyGradient(advantage=group_relative, aggregation=token_mean, ratio=clip(low=0.2, high=0.28))
    >>> jax.tree.leaves(_)
    [0.2, 0.28]
    """

    advantage: Callable[..., Float[Array, "P G T"]]
    """A, the advantage of a token: `f(rewards [P, G] or [P, G, T], mask [P, G, T], **fields of Rollouts)`."""
    aggregation: Callable[..., Float[Array, "P G T"]]
    """w, the weight of a token: `f(mask [P, G, T], sign [P, G], **fields of Rollouts)`."""
    ratio: Callable[..., Float[Array, "*B T"]]
    """f, from log-ratios to log-ratios: `f(log_ratio, advantages, segments, **fields of Batch) -> log_ratio`."""
    carried: Carried | None = None
    """State carried from one rollout to the next, if there is any; any object with `init` and `update` is accepted."""
    top_k: int | None = None
    """Number of the sampling policy's likeliest tokens that `Batch.divergence` is taken over, if the ratio needs it."""

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
    """Raises TypeError unless it can be called with these positional arguments and the fields that it requires."""
    if not callable(value):
        raise TypeError(f"{name} = {value!r}: expected a function")
    try:
        signature = inspect.signature(value)
    except ValueError:  # some functions of C have none
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
    """The function with its required keyword-only parameters taken, as constants, from the fields of those names.

    Raises ValueError, naming the field, if the source has none of that name or it is None.
    """
    name, kind, bound = name_of(function), type(source).__name__, {}
    for field in sorted(required_fields(function)):
        if field not in {f.name for f in dataclasses.fields(source)}:
            raise ValueError(f"{name} requires {field!r}, which is not a field of {kind}: bind it, "
                             f"partial({name}, {field}=…)")  # fmt: skip
        bound[field] = lax.stop_gradient(getattr(source, field))
        if bound[field] is None:
            raise ValueError(f"{name} requires {field!r}, and {kind}.{field} is None: give {kind}({field}=…)")
    return partial(function, **bound)


def trained(mask: Bool[Array, "*B T"], segment_ids: Int[Array, "*B T"] | None) -> Bool[Array, "*B T"]:
    """The tokens that are trained on: mask true, and segment id not 0 if there are ids."""
    mask = require_mask(mask)
    if segment_ids is None:
        return mask
    require_shape(mask.shape, "mask", segment_ids=segment_ids)
    return mask & (jnp.asarray(segment_ids) != 0)


def advantages_of(advantage: Callable, rollouts: Rollouts) -> Float[Array, "P G T"]:
    """A of a rollout: the advantage function on the fields it names, without gradient, 0 where no token is trained.

    Raises ValueError if a field that it names is missing or shapes do not fit, TypeError if the mask is not boolean or
    the advantages are not floating-point numbers.

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
    """The batch of one optimizer step over whole groups: A, and w as a measure over all of its tokens; axes [P, G, T].

        A = advantage(rewards, mask),    w = aggregation(mask, sign of A)

    State that the algorithm carries is updated before, once per rollout: `algorithm.carried.update(state, rollouts)`.
    To take several optimizer steps, compute A over the rollout (`advantages_of`) and w over each minibatch
    (`weighted_batch`). Everything in the batch is a constant.

    Raises ValueError if a field that the algorithm names is missing or shapes do not fit, TypeError if the mask is not
    boolean, or `algorithm` is not a PolicyGradient.

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
    """The batch of one optimizer step from advantages that were computed over its whole rollout; see `make_batch`."""
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
    """Raises TypeError unless it is a PolicyGradient; a function that makes one should have been called."""
    if not isinstance(algorithm, PolicyGradient):
        call = f"; call it, {algorithm.__name__}(…)" if inspect.isfunction(algorithm) else ""
        raise TypeError(f"{argument} = {shown(algorithm)}: expected a PolicyGradient, such as algorithms.grpo(){call}")


def _require_result(kind: str, function: Callable, result: Array, mask: Array) -> None:
    """Raises unless what a function returned has the mask's shape and is floating."""
    if jnp.shape(result) != mask.shape:
        raise ValueError(f"{kind} {name_of(function)} returned shape {jnp.shape(result)}: expected {mask.shape}, "
                         "that of the mask")  # fmt: skip
    if not jnp.issubdtype(jnp.result_type(result), jnp.floating):
        raise TypeError(f"{kind} {name_of(function)} returned dtype {jnp.result_type(result)}: "
                        "expected floating-point numbers")  # fmt: skip


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
    """True at the tokens that contribute to the loss, as `Terms.live`."""
    return terms(batch.old_logp, batch).live


def policy_loss(logp: Float[Array, "*B T"], batch: Batch, ratio: Callable) -> Float[Array, ""]:
    """The loss of a policy gradient, a plain sum over the batch's tokens.

        L = − Σ_t w_t · A_t · exp f(ℓ; A, m)_t,    ℓ_t = logp_t − old_logp_t

    `logp [*B, T]` holds log π_θ(tokens[t] | tokens[<t]), nats; `ratio` is f. The sums of microbatches, shards and hosts
    add to the sum of the whole, since the weights were made over the whole optimizer step. Only `logp` and the
    hyper-parameters of `ratio` are differentiated; every field of the batch is a constant. A token with mask false or
    w·A = 0 contributes exactly 0, value and gradient, whatever it holds (as a part of its sequence's ratio it is read
    while its ℓ is finite).

    Raises ValueError if shapes differ or the ratio names a field that the batch lacks; TypeError if the mask is not
    boolean or the ratio is not a function that returns floating-point numbers.

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
