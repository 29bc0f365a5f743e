"""Gradients of a sum over rows, accumulated over microbatches, and the update made of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax


class State(NamedTuple):
    """Parameters and the state of the optimizer, which an optimizer step replaces."""

    params: Any
    opt: Any


def accumulate(loss: Callable, params, rows, microbatches: int):
    """(Σ loss, Σ aux), Σ ∂loss/∂params over the microbatches of `rows`.

    `loss(params, rows) -> (sum, aux)`: every leaf of aux is a sum too, so the parts simply add and nothing divides.
    Every leaf of `rows` is `[R, …]` with R a multiple of `microbatches`; part i takes the rows i, i + microbatches, ….
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(params, rows)
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), rows)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, gradient(params, part)), None), zero, parts)
    return total


def apply(optimizer: optax.GradientTransformation, state: State, gradient, taken: jax.Array) -> tuple[State, jax.Array]:
    """One optimizer step if `taken`, else the same state; and the global norm of the gradient before any clipping."""

    def step(state: State) -> State:
        with jax.numpy_dtype_promotion("standard"):  # Optax relies on it
            updates, opt = optimizer.update(gradient, state.opt, state.params)
            return State(optax.apply_updates(state.params, updates), opt)

    return lax.cond(taken, step, lambda state: state, state), optax.tree.norm(gradient)
