"""Tests that arrays sharded over explicit mesh axes, the default of `jax.make_mesh`, give the values of one device."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax import distillation
from tests.arguments import FUNCTIONS, SIZES, arguments, call

SHAPES = SIZES | {"P": 4, "G": 6, "T": 8, "N": 8, "V": 11}
LAYOUTS = {"P": ("data", None, None), "P and T": ("data", None, "model"), "P and G": ("data", "model", None)}
every_function = pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "top_tokens"])
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def mesh():
    return jax.make_mesh((4, 2), ("data", "model"))


def single(x):
    return np.asarray(x, np.float32) if isinstance(x, np.ndarray | np.floating) and x.dtype.kind == "f" else x


def sharded(x, layout):
    """Shards [P, G, T] or its leading axes by `layout`, and other arrays over their first axis if 4 divides it."""
    if not isinstance(x, np.ndarray):
        return x
    leading = x.shape == (SHAPES["P"], SHAPES["G"], SHAPES["T"])[: x.ndim]
    first = ["data"] if x.ndim and x.shape[0] % 4 == 0 else []
    return jax.device_put(x, NamedSharding(mesh(), P(*(LAYOUTS[layout][: x.ndim] if leading else first))))


def given(name, layout=None):
    plain = jax.tree.map(single, arguments(name, SHAPES))
    return plain if layout is None else jax.tree.map(lambda x: sharded(x, layout), plain)


def traced(name, given):
    arrays, others = ({k: x for k, x in given.items() if callable(x) == c} for c in (False, True))
    return (lambda arrays: call(name)(**arrays, **others)), arrays


@every_layout
@every_function
def test_it_traces(name, layout):
    function, arrays = traced(name, given(name, layout))
    alone = jax.eval_shape(function, arrays)
    with jax.set_mesh(mesh()):
        assert jax.tree.map(np.shape, jax.eval_shape(function, arrays)) == jax.tree.map(np.shape, alone)


@cache
def results(layout):
    programs = {name: traced(name, given(name, layout)) for name in FUNCTIONS if name != "top_tokens"}
    functions, arrays = ({name: x[i] for name, x in programs.items()} for i in (0, 1))
    run = jax.jit(lambda arrays: {name: f(arrays[name]) for name, f in functions.items()})
    if layout is None:
        return jax.device_get(run(arrays))
    with jax.set_mesh(mesh()):
        return jax.device_get(run(arrays))


@every_layout
@every_function
def test_its_values_are_those_of_one_device(name, layout):
    for a, b in zip(jax.tree.leaves(results(layout)[name]), jax.tree.leaves(results(None)[name]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_top_tokens_requires_automatic_axes():
    hidden, unembedding = (sharded(np.ones((8, 4), np.float32), "P") for _ in range(2))
    with jax.set_mesh(mesh()):
        with pytest.raises(ValueError, match=r"hidden has sharding .*`jax\.sharding\.auto_axes`"):
            distillation.top_tokens(hidden, unembedding, k=2)
        auto = jax.sharding.auto_axes(partial(distillation.top_tokens, k=2), out_sharding=P("data"))
        ids, _ = auto(hidden, unembedding)
    np.testing.assert_array_equal(ids, np.tile([0, 1], (8, 1)))


def test_the_gradient_of_gathered_rows():
    ids = np.random.default_rng(0).integers(0, 11, (8, 2)).astype(np.int32)
    hidden, unembedding = np.ones((8, 4), np.float32), np.ones((11, 4), np.float32)
    gradient = jax.jit(jax.grad(lambda table, hidden, ids: distillation.logits_at(hidden, table, ids).sum()))
    expected = gradient(unembedding, hidden, ids)
    with jax.set_mesh(mesh()):
        found = gradient(*(sharded(x, "P") for x in (unembedding, hidden, ids)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.max(expected) > 1
