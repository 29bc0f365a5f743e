"""Ratios built from other ratios: `chain` and `local_gradient`."""

from collections.abc import Callable

from jax import lax

from rljax._expression import combinator
from rljax._guards import with_gradient_of
from rljax._segments import Segments
from rljax.objective import required_fields, requiring
from rljax.ratio._arguments import Tokens


@combinator
def chain(*ratios: Callable) -> Callable:
    """Applies several `ratios` one after the other, from left to right.

        chain(f, g)(ℓ) = g(f(ℓ))

    Order matters: a pool followed by a clip is GSPO, a clip followed by a pool is GMPO. Returns a ratio that requires
    the keywords of all `ratios` and raises their errors. `local_gradient` changes the gradient of one ratio.

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
    """A ratio with the value of `ratio` and, at each token, the gradient of ℓ at that token only.

        sg(f(ℓ) − ℓ) + ℓ

    A pool's own gradient applies the advantage of one token to other tokens. This is intended in a sequence-level
    objective (GSPO), but wrong for `cumulative` and for advantages that vary within a sequence. Returns a ratio with
    the keywords and errors of `ratio`; its derivative with respect to hyper-parameters is 0. `chain` keeps gradients.

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
