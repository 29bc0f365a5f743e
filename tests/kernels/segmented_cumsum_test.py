"""segmented_cumsum and segmented_cummin: by hand, against a loop in NumPy, gradients, holes and mutants."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import segmented_cummin, segmented_cumsum
from pallas_kernels.segmented_cumsum import _gradients, chunked
from pallas_kernels.segmented_cumsum._operation import SUM

DIRECTIONS = [
    dict(zip(("reverse", "exclusive"), pair, strict=True)) for pair in itertools.product((False, True), repeat=2)
]
LENGTHS = (1, 64, 200)


def enable_x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


@pytest.fixture
def x64():
    with enable_x64():
        yield


def example(length, rows=3):
    """x and ids with holes before, inside and after sequences, some longer than a chunk."""
    rng = np.random.default_rng(length)
    ids = 1 + np.cumsum(rng.random((rows, length)) < np.array([0.2, 0.02, 0.0])[:rows, None], axis=1)
    return rng.normal(size=(rows, length)), np.where(rng.random((rows, length)) < 0.25, 0, ids).astype(np.int32)


def loop(x, ids, combine, empty, reverse=False, exclusive=False):
    y = np.full(x.shape, empty)
    for row, t in np.ndindex(x.shape):
        earlier = range(t, x.shape[1]) if reverse else range(t, -1, -1)
        for s in earlier:
            if ids[row, s] == ids[row, t] != 0 and not (exclusive and s == t):
                y[row, t] = combine(y[row, t], x[row, s])
    return y


def test_by_hand():
    x, ids = jnp.array([1.0, 2.0, 100.0, 4.0, 8.0, 16.0, 100.0]), jnp.array([3, 3, 0, 3, 5, 5, 0])
    for implementation in ("reference", "chunked", None):

        def run(implementation=implementation, **direction):
            return segmented_cumsum(x, ids, implementation=implementation, **direction).tolist()

        assert run() == [1, 3, 0, 7, 8, 24, 0]
        assert run(exclusive=True) == [0, 1, 0, 3, 0, 8, 0]
        assert run(reverse=True) == [7, 6, 0, 4, 24, 16, 0]
        assert run(reverse=True, exclusive=True) == [6, 4, 0, 0, 16, 0, 0]
        inf, least = float("inf"), partial(segmented_cummin, implementation=implementation)
        assert least(x, ids).tolist() == [1, 1, inf, 1, 8, 8, inf]
        assert least(x, ids, reverse=True, exclusive=True).tolist() == [2, 4, inf, inf, 16, inf, inf]


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_agrees_with_a_loop(x64, direction):
    def run(x, ids):
        forms = chunked.in_one_loop, chunked.in_chunks  # a CPU's, and other devices'
        sums = [form(SUM, *direction.values(), jnp.where(ids != 0, x, 0), ids) for form in forms]
        names = ("reference", "chunked")
        sums += [segmented_cumsum(x, ids, implementation=name, **direction) for name in names]
        return sums, [segmented_cummin(x, ids, implementation=name, **direction) for name in names]

    for length in LENGTHS:
        x, ids = example(length)
        sums, minima = jax.jit(run)(x, ids)
        for y in sums:
            np.testing.assert_allclose(y, loop(x, ids, np.add, 0.0, **direction), rtol=1e-12, atol=1e-12)
        for y in minima:
            np.testing.assert_array_equal(y, loop(x, ids, np.minimum, np.inf, **direction))


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("length", [7, 130])
def test_gradients_agree(x64, direction, length):
    x, ids = map(jnp.asarray, example(length))

    def loss(x, implementation):
        y = segmented_cumsum(x, ids, implementation=implementation, **direction)
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(length, dtype=y.dtype))[None])

    gradient, expected = (jax.jit(jax.grad(loss), static_argnums=1)(x, name) for name in ("chunked", "reference"))
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(gradient[ids == 0], 0)
    assert jnp.max(jnp.abs(gradient)) > 0.1

    def norm(x, implementation):
        return jnp.sum(jax.grad(loss)(x, implementation) ** 2)

    second, expected = (jax.jit(jax.grad(norm), static_argnums=1)(x, name) for name in ("chunked", "reference"))
    np.testing.assert_allclose(second, expected, rtol=1e-9, atol=1e-9)


def gradients_of_the_minimum(x, ids, direction):
    """By the rule and by the reference, of a loss that weighs each token otherwise."""

    def loss(x, implementation):
        y = segmented_cummin(x, ids, implementation=implementation, **direction)
        return jnp.sum(jnp.where(jnp.isfinite(y), jnp.sin(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)) * y, 0))

    return [jax.jit(jax.grad(loss), static_argnums=1)(x, name) for name in ("chunked", "reference")]


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_gradient_of_the_minimum_goes_to_the_minimum(x64, direction):
    gradient, expected = gradients_of_the_minimum(*map(jnp.asarray, example(70)), direction)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
    assert np.max(np.abs(gradient)) > 1


def test_gradient_of_the_minimum_among_equals_and_infinities():
    """To the first of equals; none to an infinity, before whose fall there is nothing to move."""
    ids = jnp.array([1, 1, 1, 2, 2, 2])
    x = jnp.array([2.0, 1.0, 1.0, jnp.inf, 3.0, 4.0])

    def total(x, **direction):
        y = segmented_cummin(x, ids, **direction)
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0))

    def gradient(**direction):
        return jax.jit(jax.grad(partial(total, **direction)))(x).tolist()

    assert gradient() == [1, 2, 0, 0, 2, 0]
    assert gradient(reverse=True) == [0, 0, 3, 0, 2, 1]
    assert gradient(exclusive=True) == [1, 1, 0, 0, 1, 0]
    curved = jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(lambda x: total(x) ** 2)(x) ** 2)))(x)
    assert curved.tolist() == [720 * n for n in (1, 2, 0, 0, 2, 0)]  # of Σ(2 Y n)², Y = Σ n x = 10, Σ n² = 9


def test_vmap_and_leading_axes(x64):
    x, ids = map(jnp.asarray, example(80))
    whole = segmented_cumsum(x, ids)
    np.testing.assert_array_equal(jax.vmap(segmented_cumsum)(x, ids), whole)
    np.testing.assert_array_equal(segmented_cumsum(x[:, None], ids[:, None])[:, 0], whole)
    np.testing.assert_array_equal(segmented_cumsum(x[0], ids[0]), whole[0])
    gradient = jax.grad(lambda x, ids: jnp.sum(segmented_cumsum(x, ids) ** 2))
    np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(x, ids), jax.jit(gradient)(x, ids), rtol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("length", [9, 100])
def test_a_hole_may_hold_anything_and_a_neighbour_is_not_felt(implementation, length):
    x, ids = example(length, rows=1)
    x, ids = jnp.asarray(x, jnp.float32), jnp.asarray(ids)

    def run(x):
        def loss(x):
            return jnp.sum(segmented_cumsum(x, ids, implementation=implementation) ** 2)

        return segmented_cumsum(x, ids, implementation=implementation), jax.grad(loss)(x)

    for clean, poisoned in zip(run(x), run(jnp.where(ids == 0, jnp.nan, x)), strict=True):
        np.testing.assert_array_equal(clean, poisoned)
    first = ids == jnp.max(jnp.where(ids == jnp.max(ids), 0, ids))
    elsewhere = np.asarray((ids != 0) & ~first)
    assert first.any()
    spoilt = segmented_cumsum(jnp.where(first, jnp.nan, x), ids, implementation=implementation)
    np.testing.assert_array_equal(spoilt[elsewhere], run(x)[0][elsewhere])


def test_a_mask_is_one_sequence_and_padding_changes_nothing():
    x = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    mask = jnp.array([[True, False, True, True]])
    assert segmented_cumsum(x, mask).tolist() == [[1, 0, 4, 8]]
    padded = segmented_cumsum(jnp.pad(x, ((0, 0), (3, 100))), jnp.pad(mask, ((0, 0), (3, 100))))
    assert padded[:, 3:7].tolist() == [[1, 0, 4, 8]]
    assert not padded[:, :3].any()
    assert not padded[:, 7:].any()


def test_accumulates_in_float32():
    """2048 ones, in bfloat16 whose integers end at 256."""
    y = segmented_cumsum(jnp.ones((1, 2048), jnp.bfloat16), jnp.ones((1, 2048), bool))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y[0], np.arange(1, 2049))
    gradient = jax.grad(lambda x: segmented_cumsum(x, jnp.ones((1, 4), bool)).sum())(jnp.ones((1, 4), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    assert gradient.tolist() == [[4, 3, 2, 1]]


def test_nothing_to_sum():
    for shape in ((3, 0), (0, 3)):
        assert segmented_cumsum(jnp.zeros(shape), jnp.zeros(shape, jnp.int32)).shape == shape


def no_reset(operation, exclusive, carry, token):
    (total, error, _), (x, i) = carry, token
    after = operation.absorb(total, error, x)
    return (*after, i), total if exclusive else after[0]


def forgets_at_holes(operation, exclusive, carry, token):
    (total, error, last), (x, i) = carry, token
    before = jnp.where(i == last, total, operation.empty), jnp.where(i == last, error, 0)
    after = operation.absorb(*before, x)
    return (*after, i), before[0] if exclusive else after[0]


@pytest.mark.parametrize("mutant", [no_reset, forgets_at_holes])
def test_mutants_fail(x64, monkeypatch, mutant):
    monkeypatch.setattr(chunked, "_step", mutant)
    with pytest.raises(AssertionError):
        test_agrees_with_a_loop(x64, {"reverse": False, "exclusive": False})


def no_gradient(scan, reverse, exclusive, saved, cotangent):
    return jnp.zeros_like(cotangent), None


def to_the_same_way(scan, reverse, exclusive, saved, cotangent):
    return _gradients._cummin_backward(scan, not reverse, exclusive, saved, cotangent)


def not_shifted(scan, reverse, exclusive, saved, cotangent):
    return _gradients._cummin_backward(scan, reverse, False, saved, cotangent)


@pytest.mark.parametrize("mutant", [no_gradient, to_the_same_way, not_shifted])
def test_mutants_of_the_minimums_gradient_fail(x64, monkeypatch, mutant):
    rule = jax.custom_vjp(_gradients.cummin.fun, nondiff_argnums=(0, 3, 4))
    rule.defvjp(_gradients._cummin_forward, mutant)
    monkeypatch.setattr(_gradients, "cummin", rule)
    with pytest.raises(AssertionError):
        test_gradient_of_the_minimum_goes_to_the_minimum(x64, {"reverse": False, "exclusive": True})


@pytest.mark.parametrize(
    ("x", "ids", "options", "error", "words"),
    [
        (jnp.zeros(()), jnp.zeros((), jnp.int32), {}, ValueError, r"x is of shape \(\)"),
        (jnp.zeros(3, jnp.int32), jnp.zeros(3, jnp.int32), {}, TypeError, "x is of dtype int32.*floating"),
        (jnp.zeros((2, 3)), jnp.zeros(3, jnp.int32), {}, ValueError, r"segment_ids is of shape \(3,\).*\(2, 3\)"),
        (jnp.zeros(3), jnp.zeros(3), {}, TypeError, "segment_ids is of dtype float32.*integer ids or a boolean"),
        (jnp.zeros(3), jnp.zeros(3, bool), {"implementation": "gpu"}, ValueError, "implementation is 'gpu'"),
        (
            jnp.zeros(3),
            jnp.zeros(3, bool),
            {"implementation": "tpu"},
            NotImplementedError,
            "'tpu' is lowered where it cannot run .*CPU.*should be None",
        ),
        (
            jnp.zeros(3),
            jnp.zeros(3, bool),
            {"implementation": "x"},
            ValueError,
            "implementation is 'x'.*'reference', 'chunked', 'tpu'",
        ),
    ],
)
def test_errors_name_the_argument(x, ids, options, error, words):
    with pytest.raises(error, match=words):
        segmented_cumsum(x, ids, **options)
