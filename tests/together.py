"""One program for many cases: it compiles in half the time that a program each takes."""

import functools

import jax
import numpy as np


def together(function):
    """`function`, jitted, its result in NumPy and kept: each case of a test asks for it, the first computes it."""
    run, known = jax.jit(function), {}

    @functools.wraps(function)
    def call(*arguments):
        leaves, tree = jax.tree.flatten(arguments)
        arrays = [(jax.typeof(x), getattr(x, "sharding", None), np.asarray(x).tobytes()) for x in leaves]
        key = tree, jax.config.read("jax_enable_x64"), *arrays
        if key not in known:
            known[key] = jax.device_get(run(*arguments))
        return known[key]

    return call
