"""The exact KL divergence of every token's distribution from a reference's, over the whole vocabulary."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels._dispatch import chosen, on_explicit_axes, require, rows_of
from pallas_kernels._vocabulary.arguments import check_bias, check_scalar
from pallas_kernels.token_kl import chunked, reference

__all__ = ["token_kl"]

SoftCap = float | Float[Array, ""] | None
Bias = Float[Array, " V"] | None
IMPLEMENTATIONS = {"reference": reference.token_kl, "chunked": chunked.token_kl}


@on_explicit_axes(rows_of)
def token_kl(
    hidden: Float[Array, "N D"],
    unembedding: Float[Array, "V D"],
    ref_hidden: Float[Array, "N E"],
    ref_unembedding: Float[Array, "V E"],
    mask: Bool[Array, " N"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    softcap: SoftCap | tuple[SoftCap, SoftCap] = None,
    bias: Bias | tuple[Bias, Bias] = None,
    implementation: str | None = None,
) -> Float[Array, " N"]:
    """KL(π ‖ ρ) of every row, without the logits of either leaving the kernel.

        Σ_v π(v) (log π(v) − log ρ(v)) in nats,    π = softmax(x),  ρ = softmax(x')

    with x = (h·Wᵀ + b)/τ, capped at c as in `token_stats`, and x' the same of the reference. `hidden` [N, D] and
    `unembedding` [V, D] are the policy's, the other two the reference's, whose width E may differ. `bias` b [V] and
    `softcap` c are those of both, or a pair: the policy's, then the reference's, each possibly None.

    The output is [N], in float32 (float64 where an input is). A row whose `mask` is false gives 0 and no gradient,
    whatever it holds. Every row of either weight is a token: padding is to be cut off before. Differentiable in
    `hidden`, `unembedding` and the policy's `bias` by reverse mode; the reference, τ > 0 and c > 0 count as constants.

    Tokens are banned as in `token_stats`, by a bias of −∞ for instance. A token that the policy bans adds nothing and
    has no gradient; the result is 0 if it bans all. If only the reference bans a token that the policy gives a
    probability above 0, the result is ∞, a constant without gradients.

    Raises ValueError for ranks, sizes, a temperature or an implementation that do not fit, TypeError for dtypes.

    >>> import jax.numpy as jnp
    >>> h, W, other = jnp.eye(2), jnp.array([[0.0, 0.0], [jnp.log(3.0), 0.0]]), jnp.zeros((2, 2))
    >>> [round(float(kl), 4) for kl in token_kl(h, W, h, other, jnp.array([True, True]))]  # ¼ log ½ + ¾ log 3/2
    [0.1308, 0.0]
    """
    softcap, bias = _of_each(softcap), _of_each(bias)
    _check(hidden, unembedding, ref_hidden, ref_unembedding, mask, temperature, softcap, bias)
    run = IMPLEMENTATIONS[chosen("token_kl", implementation, (None, *IMPLEMENTATIONS)) or "chunked"]
    return run(
        hidden, unembedding, ref_hidden, ref_unembedding, mask, temperature=temperature, softcap=softcap, bias=bias
    )


def _of_each(value):
    """(the policy's, the reference's)."""
    return value if isinstance(value, tuple) else (value, value)


def _check(hidden, unembedding, ref_hidden, ref_unembedding, mask, temperature, softcap, bias) -> None:
    kernel, floats = "token_kl", {"hidden": hidden, "unembedding": unembedding}
    floats |= {"ref_hidden": ref_hidden, "ref_unembedding": ref_unembedding}
    for name, array in floats.items():
        require(jnp.ndim(array) == 2, kernel, name, f"of shape {jnp.shape(array)}", "of two axes")
        dtype = jnp.result_type(array)
        require(jnp.issubdtype(dtype, jnp.floating), kernel, name, f"of dtype {dtype}", "floating point", TypeError)
    (N, D), (V, _), E = jnp.shape(hidden), jnp.shape(unembedding), jnp.shape(ref_hidden)[1]
    for name, expected in (("unembedding", (V, D)), ("ref_hidden", (N, E)), ("ref_unembedding", (V, E))):
        shape = jnp.shape(floats[name])
        require(shape == expected, kernel, name, f"of shape {shape}", f"of shape {expected}, to fit the others")
    require(V > 0, kernel, "unembedding", f"of shape {(V, D)}", "of at least one row")
    require(jnp.shape(mask) == (N,), kernel, "mask", f"of shape {jnp.shape(mask)}", f"[N] with N = {N}, as in hidden")
    dtype = jnp.result_type(mask)
    require(dtype == jnp.bool_, kernel, "mask", f"of dtype {dtype}", "bool", TypeError)
    check_scalar(kernel, "temperature", temperature)
    for name, pair in (("softcap", softcap), ("bias", bias)):
        require(
            len(pair) == 2, kernel, name, f"a tuple of {len(pair)}", "one for both, or (the policy's, the reference's)"
        )
    for cap in softcap:
        check_scalar(kernel, "softcap", cap)
    for b in bias:
        check_bias(kernel, b, V)
