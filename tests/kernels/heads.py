"""Small heads for the tests of token_stats, token_topk and token_kl: inputs, losses and comparisons."""

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("logp", "entropy", "proxy")


def enable_x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def example(n, d, v, dtype=jnp.float64, scale=1.0, absent=True):
    """(hidden, unembedding, targets); two rows have no target if `absent` and n > 4."""
    rng = np.random.default_rng(n * 1000 + v)
    targets = rng.integers(0, v, n)
    if absent and n > 4:
        targets[1], targets[-2] = -1, v
    targets[-1], targets[0] = v - 1, 0
    hidden, unembedding = scale * rng.normal(size=(n, d)), rng.normal(size=(v, d))
    return jnp.asarray(hidden, dtype), jnp.asarray(unembedding, dtype), jnp.asarray(targets, jnp.int32)


def weights(n, names=NAMES, dtype=jnp.float64):
    return {name: jnp.asarray(np.cos(np.arange(n) + 10 * NAMES.index(name)), dtype) for name in names}


def weighted(function, targets, names=NAMES):
    """The function `loss(hidden, unembedding) -> (loss, outputs)` with the cotangents of `weights`."""

    def loss(hidden, unembedding):
        stats = function(hidden, unembedding, targets)
        weight = weights(targets.shape[0], names, stats.logp.dtype)
        return sum(jnp.sum(weight[name] * getattr(stats, name)) for name in names), stats

    return loss


def gradients(function, targets, names=NAMES):
    """The function `(hidden, unembedding) -> ((∂hidden, ∂unembedding), stats)` of the loss `weighted`."""
    return jax.grad(weighted(function, targets, names), (0, 1), has_aux=True)


def close(actual, expected, tolerance):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * max(1.0, np.abs(e).max()))
