"""Exact KL divergence of the policy from a reference for every token, over the whole vocabulary."""

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
    """KL(π ‖ ρ) of the policy π from a reference ρ, for every row; only "reference" stores logits [N, V].

        kl = Σ_v π(v) (log π(v) − log ρ(v)),       π = softmax(x),   ρ = softmax(x')
        x  = (h·Wᵀ + b)/τ,     x' = (h'·W'ᵀ + b')/τ,     both with a soft cap c as in `token_stats`

    The sum is exact, unlike the estimators from sampled tokens in `rljax.penalty.kl`. The policy's arguments are
    differentiable in reverse mode; the reference, `temperature` and `softcap` count as constants.

    Tokens are banned as in `token_stats`, for instance by a bias of −∞. A token that the policy bans adds nothing and
    has no gradient; if the policy bans all tokens, the result is 0. If only the reference bans a token with π > 0, the
    result is ∞ and has no gradient. Both implementations are XLA programs that have never run on a TPU or GPU.

    Args:
      hidden: h, [N, D], the policy's hidden states, floating point.
      unembedding: W, [V, D], the policy's unembedding. Every row is a token: cut off padding before the call.
      ref_hidden: h', [N, E], the reference's hidden states; E may differ from D.
      ref_unembedding: W', [V, E], the reference's unembedding.
      mask: [N], bool; rows where it is false give 0, have no gradient, and may hold anything.
      temperature: τ > 0, a scalar, for both policies; may be traced.
      softcap: c > 0, a scalar in units of logits, or None, for both; or the pair (policy's, reference's).
      bias: b = b', [V], or None for 0; or the pair (policy's, reference's). Only the policy's has a gradient.
      implementation: "reference" (dense, the definition) or "chunked" (tiles under XLA); None is "chunked".

    Returns:
      kl, [N], in nats, in float32 (float64 if a hidden state or an unembedding is).

    Raises:
      ValueError: If a rank, shape, temperature, soft cap or implementation name is invalid.
      TypeError: If a dtype is invalid.

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
    """The pair (policy's value, reference's value)."""
    return value if isinstance(value, tuple) else (value, value)


def _check(hidden, unembedding, ref_hidden, ref_unembedding, mask, temperature, softcap, bias) -> None:
    kernel, floats = "token_kl", {"hidden": hidden, "unembedding": unembedding}
    floats |= {"ref_hidden": ref_hidden, "ref_unembedding": ref_unembedding}
    for name, array in floats.items():
        require(jnp.ndim(array) == 2, kernel, name, f"has shape {jnp.shape(array)}", "two axes")
        dtype = jnp.result_type(array)
        require(jnp.issubdtype(dtype, jnp.floating), kernel, name, f"has dtype {dtype}", "floating point", TypeError)
    (N, D), (V, _), E = jnp.shape(hidden), jnp.shape(unembedding), jnp.shape(ref_hidden)[1]
    for name, expected in (("unembedding", (V, D)), ("ref_hidden", (N, E)), ("ref_unembedding", (V, E))):
        shape = jnp.shape(floats[name])
        require(shape == expected, kernel, name, f"has shape {shape}", f"{expected}, to fit the other arrays")
    require(V > 0, kernel, "unembedding", f"has shape {(V, D)}", "at least one row")
    require(jnp.shape(mask) == (N,), kernel, "mask", f"has shape {jnp.shape(mask)}", f"[N] with N = {N}, as in hidden")
    dtype = jnp.result_type(mask)
    require(dtype == jnp.bool_, kernel, "mask", f"has dtype {dtype}", "bool", TypeError)
    check_scalar(kernel, "temperature", temperature)
    for name, pair in (("softcap", softcap), ("bias", bias)):
        require(
            len(pair) == 2, kernel, name, f"has {len(pair)} entries", "one value for both, or (policy's, reference's)"
        )
    for cap in softcap:
        check_scalar(kernel, "softcap", cap)
    for b in bias:
        check_bias(kernel, b, V)
