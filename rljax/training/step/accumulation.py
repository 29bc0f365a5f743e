"""Gradient accumulation over microbatches, and the optimizer update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jaxtyping import Bool, Int


class State(NamedTuple):
    """Parameters and optimizer state."""

    params: Any
    opt: Any


def accumulate(
    loss: Callable, params, rows, microbatches: int, present: Bool[Array, " R"] | None = None, unit: int = 1
):
    """Returns ((loss, aux), gradient), summed over the microbatches of `rows`.

    `loss(params, rows)` returns (sum, aux), where every leaf of aux is a sum over rows too. The leaves of `rows` are
    [R, …] with R a multiple of `microbatches`; microbatch i of M has rows i, i + M, …, or, with `present`, the rows of
    `present_first`, which keeps each `unit` consecutive rows together. Rows with False in `present` must add 0 to every
    sum, since microbatches without a present row are skipped. A single microbatch is always computed.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(params, rows)
    if present is None:
        parts, computed = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), rows), None
    else:
        order, computed = present_first(present, microbatches, unit)
        parts = jax.tree.map(lambda x: x[order], rows)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(sums, part):
        rows, computed = part

        def added():
            return jax.tree.map(jnp.add, sums, gradient(params, rows))

        return added() if computed is None else lax.cond(computed, added, lambda: sums), None

    return lax.scan(add, zero, (parts, computed))[0]


def present_first(
    present: Bool[Array, " R"], parts: int, unit: int = 1
) -> tuple[Int[Array, "M R//M"], Bool[Array, " M"]]:
    """Divides R rows into M = `parts`, the present rows first: (indices of rows, True for parts with a present row).

    Each `unit` consecutive rows stay together, and are present if one of them is; `unit` must divide R / M.

    >>> order, computed = present_first(jnp.array([False, True, False, False, True, True]), 3)
    >>> order.tolist(), computed.tolist()
    ([[1, 4], [5, 0], [2, 3]], [True, True, False])
    >>> present_first(jnp.array([False, False, True, False, False, True, False, False]), 2, unit=2)[0].tolist()
    [[2, 3, 4, 5], [0, 1, 6, 7]]
    """
    units = jnp.any(present.reshape(-1, unit), axis=1)
    order = jnp.argsort(~units, stable=True)
    rows = jnp.arange(present.size).reshape(-1, unit)
    return rows[order].reshape(parts, -1), jnp.any(units[order].reshape(parts, -1), axis=1)


def apply(optimizer: optax.GradientTransformation, state: State, gradient, taken: jax.Array) -> tuple[State, jax.Array]:
    """Takes an optimizer step if `taken`; returns the state and the global norm of the gradient before clipping."""

    def step(state: State) -> State:
        with jax.numpy_dtype_promotion("standard"):  # optax relies on implicit promotion
            updates, opt = optimizer.update(gradient, state.opt, state.params)
            return State(optax.apply_updates(state.params, updates), opt)

    return lax.cond(taken, step, lambda state: state, state), optax.tree.norm(gradient)
