"""Aggregations w: the weight of each token in the loss, computed once per optimizer step and without gradient.

An aggregation is called as `f(mask, sign)` and returns weights w [P, G, T] for P prompts, G completions per prompt (a
group) and T tokens; w is 0 at untrained tokens. `mask` [P, G, T] is true at trained tokens. It covers the whole
optimizer step, not a microbatch or a shard, with all completions of each group. Completions and groups without a
trained token are not counted. `sign` [P, G] is −1, 0 or 1, the sign of the completion's mean advantage, from `side`.

Other required keyword-only parameters are filled in from the fields of `Rollouts` with these names. The weights are
float64 if `sign` is, else float32. All functions raise ValueError if shapes differ, and TypeError if `mask` is not
boolean. In formulas, n_i is the number of trained tokens of completion i.
"""

import math

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Real

from rljax._checks import accumulators, ranges, require_mask, require_shape

__all__ = ["balanced", "constant", "group_mean", "sequence_mean", "side", "token_mean"]

Mask = Bool[Array, "P G T"]
Sign = Real[Array, "P G"]
Weights = Float[Array, "P G T"]


def side(advantages: Float[Array, "P G T"], mask: Mask) -> Float[Array, "P G"]:
    """Sign of each completion's mean advantage over its trained tokens, [P, G]; 0 without trained tokens.

    Takes `advantages` and `mask`, both [P, G, T]. The result is the argument `sign` of aggregations.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> side(jnp.array([[[0.5, 9.0, 9.0], [1.0, -2.0, -2.0]]]), lengths_1_and_3).tolist()
    [[1.0, -1.0]]
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape, "mask", advantages=advantages)
    (advantages,) = accumulators(advantages=advantages)
    return jnp.sign(jnp.sum(jnp.where(mask, advantages, 0.0), axis=-1))


def token_mean(mask: Mask, sign: Sign) -> Weights:
    """DAPO's aggregation: every token of the step has the same weight (2503.14476).

        w = 1/Σ_i n_i

    Takes `mask` [P, G, T] and `sign` [P, G]; returns w [P, G, T]. `sequence_mean` weights all sequences equally.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> token_mean(lengths_1_and_3, jnp.array([[1, -1]])).tolist()
    [[[0.25, 0.0, 0.0], [0.25, 0.25, 0.25]]]
    """
    mask, sign = _checked(mask, sign)
    return _weights(mask, 1 / _count(mask, (0, 1, 2), sign))


def sequence_mean(mask: Mask, sign: Sign) -> Weights:
    """GRPO's and GSPO's aggregation: every sequence has the same total weight (2402.03300, 2507.18071).

        w = 1/(n_i · number of sequences)

    Takes `mask` [P, G, T] and `sign` [P, G]; returns w [P, G, T]. `token_mean` weights all tokens equally.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> print(sequence_mean(lengths_1_and_3, jnp.array([[1, -1]])))
    [[[0.5   0.    0.   ]
      [0.167 0.167 0.167]]]
    """
    mask, sign = _checked(mask, sign)
    present = jnp.any(mask, axis=-1, keepdims=True)
    return _weights(mask, 1 / (_count(mask, 2, sign) * _count(present, (0, 1, 2), sign)))


def group_mean(mask: Mask, sign: Sign) -> Weights:
    """Mean per prompt: every group has the same total weight, divided equally among its tokens.

        w = 1/(number of groups · Σ of n_i in the group)

    Takes `mask` [P, G, T] and `sign` [P, G]; returns w [P, G, T]. `balanced` also separates the signs of A.

    >>> two_groups = jnp.array([[[1, 0, 0], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]], bool)
    >>> group_mean(two_groups, jnp.ones((2, 2))).tolist()
    [[[0.25, 0.0, 0.0], [0.25, 0.0, 0.0]], [[0.125, 0.125, 0.0], [0.125, 0.125, 0.0]]]
    """
    mask, sign = _checked(mask, sign)
    return _weights(mask, 1 / (_count(mask, (1, 2), sign) * _groups(mask, sign)))


@ranges(max_length=(1, math.inf))
def constant(mask: Mask, sign: Sign, *, max_length: float | Array) -> Weights:
    """Dr. GRPO's aggregation: a sum over tokens divided by a constant, then a mean over sequences (2503.20783).

        w = 1/(max_length · number of sequences)

    Takes `mask` [P, G, T] and `sign` [P, G]; returns w [P, G, T]. Raises ValueError if max_length < 1. `max_length` is
    the budget of trained tokens per sequence; with 1 the loss is the mean over sequences of token sums. The weights
    need not sum to 1. Long sequences count more, relative to short ones, than under `sequence_mean`.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> constant(lengths_1_and_3, jnp.array([[1, -1]]), max_length=4).tolist()
    [[[0.125, 0.0, 0.0], [0.125, 0.125, 0.125]]]
    """
    mask, sign = _checked(mask, sign)
    present = jnp.any(mask, axis=-1, keepdims=True)
    return _weights(mask, 1 / (jnp.asarray(max_length, sign.dtype) * _count(present, (0, 1, 2), sign)))


def balanced(mask: Mask, sign: Sign) -> Weights:
    """Balanced Aggregation: a token mean on each side of the group, A > 0 and A < 0 (2605.04077).

        w = (n_side / G) / (tokens of the side) / P

    Takes `mask` [P, G, T] and `sign` [P, G]; returns w [P, G, T]. n_side is the number of completions on the token's
    side, G the number in the group and P the number of groups. A completion with A = 0 counts in G only and has w = 0.
    A NaN in `sign` makes the weights of its group NaN. If lengths are equal within each side, w is 1/(P·G·n_i); if the
    mean lengths of both sides are equal and no A is 0, w is as in `group_mean`.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> print(balanced(lengths_1_and_3, jnp.array([[1, -1]])))  # half over one token, half over three
    [[[0.5   0.    0.   ]
      [0.167 0.167 0.167]]]
    """
    mask, sign = _checked(mask, sign)
    present = jnp.any(mask, axis=-1, keepdims=True)
    share = 1 / (_count(present, (1, 2), sign) * _groups(mask, sign))
    weights = jnp.zeros(mask.shape, sign.dtype)
    for value in (-1, 1):
        here = mask & (jnp.sign(sign) == value)[..., None]
        members = _count(jnp.any(here, axis=-1, keepdims=True), (1, 2), sign)
        weights += _weights(here, members * share / _count(here, (1, 2), sign))
    unknown = jnp.any(present & jnp.isnan(sign)[..., None], axis=(1, 2), keepdims=True)
    return jnp.where(mask & unknown, jnp.nan, weights)


def _checked(mask, sign) -> tuple[Array, Array]:
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape[:2], "mask's leading axes", sign=sign)
    (sign,) = accumulators(sign=sign)
    return mask, sign


def _count(mask: Array, axis, sign: Array) -> Array:
    """The number of true entries along the axes, at least 1 so that it can be a divisor."""
    return jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1).astype(sign.dtype)


def _groups(mask: Array, sign: Array) -> Array:
    return _count(jnp.any(mask, axis=(1, 2), keepdims=True), (0, 1, 2), sign)


def _weights(mask: Array, weight: Array) -> Array:
    return jnp.where(mask, weight, jnp.zeros((), weight.dtype))
