"""Inputs of every public function except ratios: arrays read, arrays with a gradient, propagation of NaN."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.arguments import DIFFERENTIATED, FUNCTIONS, MODULES, arguments, call, floating, replaced

every_function = pytest.mark.parametrize("name", FUNCTIONS)


def scalar(out):
    """Sum of all floating outputs, weighted so that none cancels; None without floating outputs."""
    floats = [x for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.cos(jnp.arange(1.0, x.size + 1)).reshape(x.shape) * x) for x in floats) if floats else None


def test_no_function_escapes():
    assert len(FUNCTIONS) == sum(inspect.isfunction(getattr(m, name)) for m in MODULES for name in m.__all__) > 50
    assert FUNCTIONS.keys() >= DIFFERENTIATED.keys()


def gradients(name, given):
    """The gradient of every floating argument by path; None if all outputs are ids or decisions."""

    def total(arrays):
        return scalar(call(name)(**replaced(given, **arrays)))

    with jax.numpy_dtype_promotion("standard"):
        known = jax.eval_shape(total, floating(given)) is not None
        return jax.jit(jax.grad(total))(floating(given)) if known else None


@every_function
def test_only_predictions_are_differentiated(name):
    with jax.enable_x64(True):
        found = gradients(name, arguments(name))
    if found is None:
        assert name not in DIFFERENTIATED
        return
    assert DIFFERENTIATED.get(name, set()) <= found.keys()
    for path, gradient in found.items():
        if path in DIFFERENTIATED.get(name, ()):
            assert np.max(np.abs(gradient)) > 1e-3, path
        else:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape), err_msg=path)


def trained_places(name, path, given):
    x = floating(given)[path]
    mask = given["batch"].mask if "batch" in given else given.get("mask", np.ones((), bool))
    if "support" in given and path.endswith("logits"):
        mask = given["support"].valid
    mask = mask if mask.shape == x.shape else np.ones(x.shape, bool)
    return [[tuple(place) for place in np.argwhere(m)] for m in (mask, ~mask)]


def moved(x, place, by):
    x = x.copy()
    x[place] = by
    return x


@every_function
def test_nan_at_a_trained_token_propagates_and_at_others_is_not_read(name):
    given = arguments(name)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        run = jax.jit(lambda arrays: scalar_and_out(name, given, arrays))
        arrays = floating(given)
        value, out = run(arrays)
        read = 0
        for path, x in arrays.items():
            trained, others = trained_places(name, path, given)
            for place in trained[:: max(len(trained) // 6, 1)]:
                changed, spoilt = (run(arrays | {path: moved(x, place, by)}) for by in (x[place] + 0.7, np.nan))
                if value is not None and changed[0] != value:
                    read += 1
                    assert np.isnan(spoilt[0]), (path, place)
                    if path == "rewards" and np.ndim(spoilt[1]) and name != "permute_within_group":
                        own = spoilt[1][place]  # at the completion itself, not only at others of its group
                        assert np.isnan(own[given["mask"][place]] if own.ndim else own).all(), place
            for place in others[:2]:
                assert_equal(run(arrays | {path: moved(x, place, np.nan)})[1], out, path)
    assert read or value is None or name in ("ordinary",)


def scalar_and_out(name, given, arrays):
    out = call(name)(**replaced(given, **arrays))
    return scalar(out), out


def assert_equal(actual, expected, path):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


OF_BATCHES = [name for name in FUNCTIONS if "batch" in inspect.signature(FUNCTIONS[name]).parameters]


@pytest.mark.parametrize("name", [name for name in OF_BATCHES if name not in ("clip_cov", "confident_negatives")])
def test_a_segment_id_of_0_is_not_trained(name):
    given = arguments(name)
    batch, hole = given["batch"], np.random.default_rng(5).random(given["batch"].mask.shape) > 0.7
    batches = {
        "ids": dataclasses.replace(batch, segment_ids=np.where(hole, 0, 1).astype(np.int32)),
        "mask": dataclasses.replace(batch, mask=batch.mask & ~hole),
        "whole": batch,
    }
    with jax.enable_x64(True):
        run = jax.jit(lambda batches: {key: call(name)(**given | {"batch": b}) for key, b in batches.items()})
        found = jax.device_get(run(batches))
    np.testing.assert_allclose(found["ids"], found["mask"], rtol=1e-12, atol=1e-12)
    assert np.max(np.abs(found["whole"] - found["mask"])) > 1e-3
