"""segmented_cumsum and segmented_cummin against values by hand and loops in NumPy; gradients, holes and mutants."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import segmented_cummin, segmented_cumsum
from pallas_kernels.segmented_cumsum import _gradients, chunked
from pallas_kernels.segmented_cumsum._monoids import SUM

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
    """(x, ids) with holes before, inside and after sequences; some sequences are longer than a chunk."""
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
    x, ids = np.array([1.0, 2.0, 100.0, 4.0, 8.0, 16.0, 100.0], np.float32), np.array([3, 3, 0, 3, 5, 5, 0])
    names, both_ways = ("reference", "chunked", None), {"reverse": True, "exclusive": True}

    @jax.jit
    def run(x, ids):
        sums = [[segmented_cumsum(x, ids, implementation=name, **way) for way in DIRECTIONS] for name in names]
        least = [[segmented_cummin(x, ids, implementation=name, **way) for way in ({}, both_ways)] for name in names]
        return sums, least

    inf = float("inf")
    for (sums, exclusive, reverse, both), (least, of_the_others) in zip(*jax.tree.map(list, run(x, ids)), strict=True):
        assert sums == [1, 3, 0, 7, 8, 24, 0]
        assert exclusive == [0, 1, 0, 3, 0, 8, 0]
        assert reverse == [7, 6, 0, 4, 24, 16, 0]
        assert both == [6, 4, 0, 0, 16, 0, 0]
        assert least == [1, 1, inf, 1, 8, 8, inf]
        assert of_the_others == [2, 4, inf, inf, 16, inf, inf]


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_agrees_with_a_loop(x64, direction):
    def run(x, ids):
        forms = chunked.in_one_loop, chunked.in_chunks  # the forms for CPUs and for other devices
        sums = [form(SUM, *direction.values(), jnp.where(ids != 0, x, 0), ids) for form in forms]
        names = ("reference", "chunked")
        sums += [segmented_cumsum(x, ids, implementation=name, **direction) for name in names]
        return sums, [segmented_cummin(x, ids, implementation=name, **direction) for name in names]

    for length in LENGTHS:
        x, ids = example(length)
        sums, minima = jax.jit(run)(x, ids)
        total, least = loop(x, ids, np.add, 0.0, **direction), loop(x, ids, np.minimum, np.inf, **direction)
        for y in sums:
            np.testing.assert_allclose(y, total, rtol=1e-12, atol=1e-12)
        for y in minima:
            np.testing.assert_array_equal(y, least)


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
@pytest.mark.parametrize("length", [7, 130])
def test_gradients_agree(x64, direction, length):
    x, ids = example(length)

    def loss(x, implementation):
        y = segmented_cumsum(x, ids, implementation=implementation, **direction)
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(length, dtype=y.dtype))[None])

    def norm(x, implementation):
        return jnp.sum(jax.grad(loss)(x, implementation) ** 2)

    names = "chunked", "reference"
    run = jax.jit(lambda x: [[jax.grad(function)(x, name) for name in names] for function in (loss, norm)])
    (gradient, expected), second = run(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(np.asarray(gradient)[ids == 0], 0)
    assert np.max(np.abs(gradient)) > 0.1
    np.testing.assert_allclose(*second, rtol=1e-9, atol=1e-9)


def gradients_of_the_minimum(x, ids, direction):
    def loss(x, implementation):
        y = segmented_cummin(x, ids, implementation=implementation, **direction)
        return jnp.sum(jnp.where(jnp.isfinite(y), jnp.sin(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)) * y, 0))

    return jax.jit(lambda x: [jax.grad(loss)(x, name) for name in ("chunked", "reference")])(x)


@pytest.mark.parametrize("direction", DIRECTIONS, ids=str)
def test_gradient_of_the_minimum_goes_to_the_minimum(x64, direction):
    gradient, expected = gradients_of_the_minimum(*example(70), direction)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)
    assert np.max(np.abs(gradient)) > 1


def test_gradient_of_the_minimum_among_equals_and_infinities():
    ids = np.array([1, 1, 1, 2, 2, 2])
    x = np.array([2.0, 1.0, 1.0, np.inf, 3.0, 4.0], np.float32)

    def total(x, **direction):
        y = segmented_cummin(x, ids, **direction)
        return jnp.sum(jnp.where(jnp.isfinite(y), y, 0))

    @jax.jit
    def gradients(x):
        directions = {}, {"reverse": True}, {"exclusive": True}
        curved = jax.grad(lambda x: jnp.sum(jax.grad(lambda x: total(x) ** 2)(x) ** 2))
        return *(jax.grad(partial(total, **direction))(x) for direction in directions), curved(x)

    forward, reverse, exclusive, curved = (gradient.tolist() for gradient in gradients(x))
    assert forward == [1, 2, 0, 0, 2, 0]
    assert reverse == [0, 0, 3, 0, 2, 1]
    assert exclusive == [1, 1, 0, 0, 1, 0]
    assert curved == [720 * n for n in (1, 2, 0, 0, 2, 0)]  # of Σ(2 Y n)², Y = Σ n x = 10, Σ n² = 9


def test_vmap_and_leading_axes(x64):
    gradient = jax.grad(lambda x, ids: jnp.sum(segmented_cumsum(x, ids) ** 2))

    @jax.jit
    def run(x, ids):
        others = (
            jax.vmap(segmented_cumsum)(x, ids),
            segmented_cumsum(x[:, None], ids[:, None])[:, 0],
            segmented_cumsum(x[0], ids[0]),
        )
        return segmented_cumsum(x, ids), others, jax.vmap(gradient)(x, ids), gradient(x, ids)

    whole, (mapped, of_three_axes, of_one), *gradients = run(*example(80))
    np.testing.assert_array_equal(mapped, whole)
    np.testing.assert_array_equal(of_three_axes, whole)
    np.testing.assert_array_equal(of_one, whole[0])
    np.testing.assert_allclose(*gradients, rtol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("length", [9, 100])
def test_holes_and_neighboring_sequences_change_nothing(implementation, length):
    x, ids = example(length, rows=1)
    x = x.astype(np.float32)

    @jax.jit
    def run(x):
        def loss(x):
            return jnp.sum(segmented_cumsum(x, ids, implementation=implementation) ** 2)

        return segmented_cumsum(x, ids, implementation=implementation), jax.grad(loss)(x)

    def spoilt(where):
        return np.where(where, np.float32(np.nan), x)

    for clean, poisoned in zip(run(x), run(spoilt(ids == 0)), strict=True):
        np.testing.assert_array_equal(clean, poisoned)
    first = ids == np.max(np.where(ids == np.max(ids), 0, ids))
    elsewhere = (ids != 0) & ~first
    assert first.any()
    np.testing.assert_array_equal(run(spoilt(first))[0][elsewhere], run(x)[0][elsewhere])


def test_a_mask_is_one_sequence_and_padding_changes_nothing():
    x = np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)
    mask = np.array([[True, False, True, True]])
    around = (0, 0), (3, 100)
    plain, padded = jax.jit(lambda *pair: [segmented_cumsum(*one) for one in pair])(
        (x, mask), (np.pad(x, around), np.pad(mask, around))
    )
    assert plain.tolist() == [[1, 0, 4, 8]]
    padded = np.asarray(padded)
    assert padded[:, 3:7].tolist() == [[1, 0, 4, 8]]
    assert not padded[:, :3].any()
    assert not padded[:, 7:].any()


def test_accumulates_in_float32():
    """The sum of 2048 ones in bfloat16, which represents consecutive integers only up to 256."""
    y = jax.jit(segmented_cumsum)(np.ones((1, 2048), jnp.bfloat16), np.ones((1, 2048), bool))
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y[0], np.arange(1, 2049))
    mask = np.ones((1, 4), bool)
    gradient = jax.jit(jax.grad(lambda x: segmented_cumsum(x, mask).sum()))(np.ones((1, 4), jnp.bfloat16))
    assert gradient.dtype == jnp.bfloat16
    assert gradient.tolist() == [[4, 3, 2, 1]]


def test_nothing_to_sum():
    for shape in ((3, 0), (0, 3)):
        assert jax.jit(segmented_cumsum)(np.zeros(shape, np.float32), np.zeros(shape, np.int32)).shape == shape


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


X, IDS, MASK = (np.zeros(3, dtype) for dtype in (np.float32, np.int32, bool))
ON_CPU = "implementation = 'tpu': expected a TPU, or several .*CPU.*None picks"


@pytest.mark.parametrize(
    ("x", "ids", "options", "error", "words"),
    [
        (X[0], IDS[0], {}, ValueError, r"x has shape \(\)"),
        (IDS, IDS, {}, TypeError, "x has dtype int32.*floating"),
        (X[None].repeat(2, 0), IDS, {}, ValueError, r"segment_ids has shape \(3,\).*\(2, 3\)"),
        (X, X, {}, TypeError, "segment_ids has dtype float32.*integer ids or a boolean"),
        (X, MASK, {"implementation": "gpu"}, ValueError, "implementation = 'gpu'"),
        (X, MASK, {"implementation": "tpu"}, NotImplementedError, ON_CPU),
        (X, MASK, {"implementation": "x"}, ValueError, "implementation = 'x'.*'reference', 'chunked', 'tpu'"),
    ],
)
def test_errors_name_the_argument(x, ids, options, error, words):
    with pytest.raises(error, match=words):
        segmented_cumsum(x, ids, **options)
