"""One compiled program for many test cases, which compiles faster than one program per case."""

import functools

import jax
import numpy as np


def together(function):
    """Jits `function` and caches its results as NumPy arrays, so that only the first test case computes them."""
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
