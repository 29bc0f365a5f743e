"""Ratios made of ratios: one after the other, or with the gradient of each token's own log-probability."""

from collections.abc import Callable

from jax import lax

from rljax._expression import combinator
from rljax._guards import with_gradient_of
from rljax._segments import Segments
from rljax.objective import required_fields, requiring
from rljax.ratio._arguments import Tokens


@combinator
def chain(*ratios: Callable) -> Callable:
    """The ratios one after the other, left to right: `chain(f, g)` is g(f(ℓ)).

    Order carries meaning: pool then clip is GSPO, clip then pool is GMPO. A keyword that any of them requires is
    required of the chain and passed on to those that name it.

    >>> import jax.numpy as jnp
    >>> from rljax.ratio import cumulative, sequence_mean
    >>> ℓ, A, mask = jnp.array([1.0, 3.0]), jnp.ones(2), jnp.ones(2, bool)
    >>> print(chain(sequence_mean, cumulative)(ℓ, A, mask), chain(cumulative, sequence_mean)(ℓ, A, mask))
    [2. 4.] [2.5 2.5]
    """

    def chained(log_ratio: Tokens, advantages: Tokens, segments: Segments, **bound) -> Tokens:
        for ratio in ratios:
            named = {name: bound[name] for name in required_fields(ratio)}
            log_ratio = ratio(log_ratio, advantages, segments, **named)
        return log_ratio

    return requiring(frozenset().union(*map(required_fields, ratios)), chained)


@combinator
def local_gradient(ratio: Callable) -> Callable:
    """The value of f with the gradient of each token's own log-probability.

        sg(f(ℓ) − ℓ) + ℓ

    Where f pools over tokens, its own gradient gives a token's advantage to other tokens: right for a sequence-level
    objective (GSPO), wrong for a cumulative ratio, or for an advantage that varies within the sequence. The derivative
    by a hyper-parameter of f is 0: f's value is a constant here.

    >>> import jax, jax.numpy as jnp
    >>> from rljax.ratio import cumulative
    >>> for ratio in (cumulative, local_gradient(cumulative)):
    ...     print(jax.grad(lambda ℓ: ratio(ℓ, jnp.ones(3), jnp.ones(3, bool)).sum())(jnp.zeros(3)))
    [3. 2. 1.]
    [1. 1. 1.]
    """

    def local(log_ratio: Tokens, advantages: Tokens, segments: Segments, **bound) -> Tokens:
        value = ratio(log_ratio, advantages, segments, **bound)
        log_ratio = log_ratio.astype(value.dtype)
        return with_gradient_of(lax.stop_gradient(value), log_ratio)

    return requiring(required_fields(ratio), local)
