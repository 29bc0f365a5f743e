"""Aggregations w: how much a token counts, once an optimizer step and without gradient.

Each is `f(mask [P, G, T], sign [P, G], **fields of Rollouts) -> weights [P, G, T]`, 0 where the mask is false; a field
is a required keyword-only parameter of its name. The mask is that of the whole optimizer step (not of a microbatch, nor
of a shard), and holds whole groups. Sequences and groups without a trained token are not counted. `sign` is −1, 0 or 1
for each completion, from `side`; the weights are float64 if it is, else float32. All raise ValueError where shapes do
not fit, TypeError where the mask is not boolean.
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
    """The sign of each completion's mean advantage over its trained tokens; 0 where it has none.

    It is the sign of A where A is constant in the completion.

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> side(jnp.array([[[0.5, 9.0, 9.0], [1.0, -2.0, -2.0]]]), lengths_1_and_3).tolist()
    [[1.0, -1.0]]
    """
    mask = require_mask(mask, "P G T")
    require_shape(mask.shape, "mask", advantages=advantages)
    (advantages,) = accumulators(advantages=advantages)
    return jnp.sign(jnp.sum(jnp.where(mask, advantages, 0.0), axis=-1))


def token_mean(mask: Mask, sign: Sign) -> Weights:
    """Every token alike, 1/Σm over the step (DAPO, 2503.14476).

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> token_mean(lengths_1_and_3, jnp.array([[1, -1]])).tolist()
    [[[0.25, 0.0, 0.0], [0.25, 0.25, 0.25]]]
    """
    mask, sign = _checked(mask, sign)
    return _weights(mask, 1 / _count(mask, (0, 1, 2), sign))


def sequence_mean(mask: Mask, sign: Sign) -> Weights:
    """Every sequence alike, 1/(n_i · number of sequences) (GRPO, 2402.03300; GSPO, 2507.18071).

    >>> lengths_1_and_3 = jnp.array([[[1, 0, 0], [1, 1, 1]]], bool)
    >>> print(sequence_mean(lengths_1_and_3, jnp.array([[1, -1]])))
    [[[0.5   0.    0.   ]
      [0.167 0.167 0.167]]]
    """
    mask, sign = _checked(mask, sign)
    present = jnp.any(mask, axis=-1, keepdims=True)
    return _weights(mask, 1 / (_count(mask, 2, sign) * _count(present, (0, 1, 2), sign)))


def group_mean(mask: Mask, sign: Sign) -> Weights:
    """Every prompt alike, and its tokens alike, 1/(P · tokens of the group).

    >>> two_groups = jnp.array([[[1, 0, 0], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]], bool)
    >>> group_mean(two_groups, jnp.ones((2, 2))).tolist()
    [[[0.25, 0.0, 0.0], [0.25, 0.0, 0.0]], [[0.125, 0.125, 0.0], [0.125, 0.125, 0.0]]]
    """
    mask, sign = _checked(mask, sign)
    return _weights(mask, 1 / (_count(mask, (1, 2), sign) * _groups(mask, sign)))


@ranges(max_length=(1, math.inf))
def constant(mask: Mask, sign: Sign, *, max_length: float | Array) -> Weights:
    """A token counts the same in every step, 1/(max_length · number of sequences) (Dr. GRPO, 2503.20783).

    Unlike the others the weights do not sum to 1, by design: a long sequence counts more. `max_length` is the budget
    of trained tokens; with 1 the loss is a mean of sums over sequences.

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

    n_side counts the completions on the token's side, G those of the group, P the groups. A completion with A = 0 is on
    neither side: it counts in G, and gets 0. A group with a NaN among its advantages has NaN weights. Within a group
    this is 1/(G·n_i) when the lengths are equal on each side, and `group_mean` when both sides' mean lengths are equal.

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
    """The number of true entries along the axes, at least 1 (nothing is divided by it where there are none)."""
    return jnp.maximum(jnp.sum(mask, axis=axis, keepdims=True), 1).astype(sign.dtype)


def _groups(mask: Array, sign: Array) -> Array:
    return _count(jnp.any(mask, axis=(1, 2), keepdims=True), (0, 1, 2), sign)


def _weights(mask: Array, weight: Array) -> Array:
    return jnp.where(mask, weight, jnp.zeros((), weight.dtype))
