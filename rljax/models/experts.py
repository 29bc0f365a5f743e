"""A mixture of experts: gated MLPs, of which a router chooses a few for each token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float

from rljax.models.attention import accumulator
from rljax.models.layers import weight


class Experts(nnx.Module):
    """Σ_e g_e(x) · W_down,e (activation(W_gate,e x) · W_up,e x), where g_e is 0 for all but `chosen` experts per token.

    p = softmax(router(x)), in at least float32. g_e = p_e for the `chosen` largest p_e, divided by their sum if
    `renormalize`. Every expert is computed for every token, on each device that holds it: this form is correct for any
    sharding, but costs experts / chosen times the computation of the chosen experts.
    """

    def __init__(
        self, D: int, M: int, experts: int, chosen: int, renormalize: bool, activation: Callable, std: float,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.router = weight(rngs, D**-0.5, embed=D, experts=experts)
        self.gate = weight(rngs, D**-0.5, experts=experts, embed=D, mlp=M)
        self.up = weight(rngs, D**-0.5, experts=experts, embed=D, mlp=M)
        self.down = weight(rngs, std, experts=experts, mlp=M, embed=D)
        self.chosen, self.renormalize, self.activation = chosen, renormalize, activation

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        gate, up, down = (kernel[...].astype(x.dtype) for kernel in (self.gate, self.up, self.down))
        h = self.activation(jnp.einsum("btd,edm->btem", x, gate)) * jnp.einsum("btd,edm->btem", x, up)
        return jnp.einsum("btem,emd->btd", self.weights(x).astype(x.dtype)[..., None] * h, down)

    def weights(self, x: Float[Array, "B T D"]) -> Float[Array, "B T E"]:
        """g, the weights of the experts for each token."""
        wide = accumulator(x.dtype)
        logits = jnp.matmul(x.astype(wide), self.router[...].astype(wide), precision=lax.Precision.HIGHEST)
        largest, ids = lax.top_k(jax.nn.softmax(logits, axis=-1), self.chosen)
        if self.renormalize:
            largest = largest / jnp.sum(largest, axis=-1, keepdims=True)
        return jnp.sum(jax.nn.one_hot(ids, logits.shape[-1], dtype=wide) * largest[..., None], axis=-2)
