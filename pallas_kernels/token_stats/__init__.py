"""What a policy-gradient loss needs to know of each token, from hidden states and the unembedding."""

import jax.numpy as jnp
from jax import core
from jaxtyping import Array, Float, Int

from pallas_kernels._dispatch import require, select
from pallas_kernels.token_stats import chunked, reference
from pallas_kernels.token_stats._types import TokenStats

__all__ = ["TokenStats", "token_stats"]

IMPLEMENTATIONS = {"reference": reference.token_stats, "chunked": chunked.token_stats}


def token_stats(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    targets: Int[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    implementation: str | None = None,
) -> TokenStats:
    """Log-probability, entropy and gradient energy of every token, without its logits leaving the kernel.

    With x = h·Wᵀ/τ and π = softmax(x), for the target y of each row:

        logp    = log π(y)
        entropy = − Σ_v π(v) log π(v)              in nats, in [0, log V]
        proxy   = 1 − 2 π(y) + Σ_v π(v)²           = ‖∂ logp/∂x‖², in [0, 2]

    `hidden` is [N, D], `unembedding` [V, D] (the layout of an embedding table), `targets` [N] integers; the outputs are
    [N], in float32 (float64 where an input is).  Logits and gradients accumulate in that type whatever the inputs are.
    A target outside [0, V) gives 0, 0, 0 and no gradient, whatever its row of `hidden` holds, even NaN.

    All three outputs are differentiable in `hidden` and `unembedding`, by reverse mode only; `temperature` τ > 0 may be
    traced but counts as a constant.  The proxy is that of the optimal token baseline (2602.07078).

    Raises ValueError for ranks, sizes, a temperature or an implementation that do not fit, TypeError for dtypes.

    >>> import jax.numpy as jnp
    >>> stats = token_stats(jnp.zeros((3, 8)), jnp.ones((4, 8)), jnp.array([0, 3, -1]))
    >>> [round(float(value), 4) for value in stats.logp]
    [-1.3863, -1.3863, 0.0]
    >>> [float(value) for value in stats.proxy]
    [0.75, 0.75, 0.0]
    """
    _check(hidden, unembedding, targets, temperature)
    run = select("token_stats", implementation, IMPLEMENTATIONS)
    return run(hidden, unembedding, targets, temperature=temperature)


def _check(hidden, unembedding, targets, temperature) -> None:
    kernel = "token_stats"
    for name, array, axes in (("hidden", hidden, "[N, D]"), ("unembedding", unembedding, "[V, D]")):
        require(jnp.ndim(array) == 2, kernel, name, f"of shape {jnp.shape(array)}", f"of two axes, {axes}")
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        require(floating, kernel, name, f"of dtype {jnp.result_type(array)}", "floating point", TypeError)
    shape, size = jnp.shape(hidden), jnp.shape(unembedding)
    require(size[1] == shape[1], kernel, "unembedding", f"of shape {size}", f"[V, D] with D = {shape[1]}, as in hidden")
    require(size[0] > 0, kernel, "unembedding", f"of shape {size}", "of at least one row")
    remedy = f"[N] with N = {shape[0]}, as in hidden"
    require(jnp.shape(targets) == shape[:1], kernel, "targets", f"of shape {jnp.shape(targets)}", remedy)
    dtype = jnp.result_type(targets)
    require(jnp.issubdtype(dtype, jnp.integer), kernel, "targets", f"of dtype {dtype}", "integer", TypeError)
    require(jnp.ndim(temperature) == 0, kernel, "temperature", f"of shape {jnp.shape(temperature)}", "a scalar")
    if not isinstance(temperature, core.Tracer):
        positive = 0 < float(temperature) < float("inf")
        require(positive, kernel, "temperature", temperature, "positive and finite (for greedy decoding there is no π)")
