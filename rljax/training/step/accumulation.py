"""Gradient accumulation over microbatches, and the optimizer update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax


class State(NamedTuple):
    """Parameters and optimizer state."""

    params: Any
    opt: Any


def accumulate(loss: Callable, params, rows, microbatches: int):
    """Returns ((loss, aux), gradient), summed over the microbatches of `rows`; microbatch i of M has rows i, i + M, ….

    `loss(params, rows)` returns (sum, aux), where every leaf of aux is a sum over rows too. The leaves of `rows` are
    [R, …] with R a multiple of `microbatches`.
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
    """Takes an optimizer step if `taken`; returns the state and the global norm of the gradient before clipping."""

    def step(state: State) -> State:
        with jax.numpy_dtype_promotion("standard"):  # optax relies on implicit promotion
            updates, opt = optimizer.update(gradient, state.opt, state.params)
            return State(optax.apply_updates(state.params, updates), opt)

    return lax.cond(taken, step, lambda state: state, state), optax.tree.norm(gradient)
