"""token_stats: chunked against the definition, the definition against NumPy and finite differences, and mutants."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import token_stats
from pallas_kernels._vocabulary import gradients as gradient_tiles
from pallas_kernels._vocabulary.tiles import LOGITS, best_tile
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.token_stats import chunked
from tests.kernels.heads import NAMES, close, enable_x64, example, gradients, weighted

NAMED = "reference", "chunked"
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(NAMES, size)]
SIZES = [  # (N, D, V), tiles: multiples, ragged, last tile with one entry, one tile per axis
    ((8, 4, 12), Tile(4, 4)),
    ((13, 5, 23), Tile(4, 8)),
    ((9, 3, 17), Tile(8, 16)),
    ((13, 5, 23), Tile(13, 8)),
    ((13, 5, 23), Tile(4, 23)),
    ((7, 5, 11), Tile(100, 100)),
    ((1, 1, 1), Tile(1, 1)),
]


@pytest.fixture
def x64():
    with enable_x64():
        yield


def tiled(tile, temperature=0.7):
    return partial(token_stats, temperature=temperature, tile=tile, implementation="chunked")


def dense(*inputs):
    return token_stats(*inputs, temperature=0.7, implementation="reference")


CASES = [(*of_size, NAMES) for of_size in SIZES] + [(*SIZES[1], names) for names in SUBSETS[:-1]]


def results(case, function, hidden, unembedding, targets):
    return gradients(function, targets, case[-1])(hidden, unembedding)


@cache
def chunked_and_dense():
    """{case: [results of chunked, results of the definition]}, from one program."""
    inputs = {sizes: example(*sizes) for sizes, _, _ in CASES}

    def program(inputs):
        return [[results(case, f, *inputs[case[0]]) for f in (tiled(case[1]), dense)] for case in CASES]

    return dict(zip(CASES, jax.jit(program)(inputs), strict=True))


def test_definition_by_hand():
    """π = (1/2, 1/4, 1/4): logp(1) = −2 ln 2, H = 1.5 ln 2, proxy = 1 − 1/2 + 3/8."""
    inputs = np.ones((1, 1), np.float32), np.log(np.array([[2.0], [1.0], [1.0]], np.float32)), np.array([1])

    def run(hidden, unembedding, targets):
        by_name = [token_stats(hidden, unembedding, targets, implementation=name) for name in (*NAMED, None)]
        return by_name, token_stats(hidden, 2 * unembedding, targets, temperature=2.0)

    by_name, halved = jax.jit(run)(*inputs)
    for stats in by_name:
        np.testing.assert_allclose(np.ravel(stats), [-2 * np.log(2), 1.5 * np.log(2), 0.875], rtol=1e-6)
    np.testing.assert_allclose(halved.logp, -2 * np.log(2), rtol=1e-6)


def test_definition_in_numpy(x64):
    hidden, unembedding, targets = example(9, 4, 15, absent=False)
    x = np.asarray(hidden) @ np.asarray(unembedding).T / 0.7
    pi = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    chosen = pi[np.arange(9), np.asarray(targets)]
    expected = np.log(chosen), -(pi * np.log(pi)).sum(1), 1 - 2 * chosen + (pi**2).sum(1)
    np.testing.assert_allclose(jax.jit(dense)(hidden, unembedding, targets), expected, rtol=1e-12)


def check(case, actual):
    close(actual, chunked_and_dense()[case][1], 1e-10)
    assert case[0] == (1, 1, 1) or all(np.abs(gradient).max() > 1e-2 for gradient in actual[0])


@pytest.mark.parametrize(("sizes", "tiles"), SIZES)
def test_chunked_is_the_definition_for_every_shape(x64, sizes, tiles):
    case = sizes, tiles, NAMES
    check(case, chunked_and_dense()[case][0])


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_chunked_is_the_definition_for_every_subset_of_cotangents(x64, names):
    case = *SIZES[1], names
    check(case, chunked_and_dense()[case][0])


@cache
def losses():
    targets = example(6, 3, 10)[2]
    of = {name: weighted(tiled(Tile(4, 4)), targets, (name,)) for name in NAMES}
    of = {name: jax.value_and_grad(loss, (0, 1), has_aux=True) for name, loss in of.items()}
    return jax.jit(lambda *inputs: {name: loss(*inputs) for name, loss in of.items()})


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_finite_differences(x64, name):
    hidden, unembedding = map(np.asarray, example(6, 3, 10)[:2])

    def loss(*inputs):
        return losses()(*inputs)[name][0][0]

    _, found = losses()(hidden, unembedding)[name]
    rng, step = np.random.default_rng(0), 1e-5
    for _ in range(4):
        dh, dw = (step * rng.normal(size=gradient.shape) for gradient in found)
        difference = (loss(hidden + dh, unembedding + dw) - loss(hidden - dh, unembedding - dw)) / 2
        expected = np.sum(found[0] * dh) + np.sum(found[1] * dw)
        np.testing.assert_allclose(expected, difference, rtol=1e-6, atol=1e-6 * step)


def test_second_derivatives_agree(x64):
    hidden, unembedding, targets = example(5, 3, 7)

    def norm(function):
        return lambda *inputs: sum(jnp.sum(g**2) for g in gradients(function, targets)(*inputs)[0])

    second = jax.jit(lambda *inputs: [jax.grad(norm(f), (0, 1))(*inputs) for f in (tiled(Tile(5, 4)), dense)])
    close(*second(hidden, unembedding), 1e-9)


def test_vmap_agrees_with_a_loop(x64):
    hidden, unembedding, targets = example(12, 3, 10)
    hidden, targets = np.reshape(hidden, (3, 4, 3)), np.reshape(targets, (3, 4))
    run = jax.jit(lambda h, y: gradients(tiled(Tile(3, 4)), y)(h, unembedding))
    looped = [run(h, y) for h, y in zip(hidden, targets, strict=True)]
    close(jax.vmap(run)(hidden, targets), jax.tree.map(lambda *parts: np.stack(parts), *looped), 1e-12)


@pytest.mark.parametrize("implementation", NAMED)
def test_an_absent_target_is_silent_whatever_its_row_holds(implementation):
    hidden, unembedding, targets = map(np.asarray, example(13, 5, 23, jnp.float32))
    absent = (targets < 0) | (targets >= 23)
    assert np.sum(absent) == 2

    run = jax.jit(lambda h: gradients(partial(token_stats, implementation=implementation), targets)(h, unembedding))
    clean, poisoned = run(hidden), run(np.where(absent[:, None], np.float32(np.nan), hidden))
    for c, p in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(c, p)
    np.testing.assert_array_equal(np.stack(clean[1])[:, absent], 0)
    gradient = np.asarray(clean[0][0])
    np.testing.assert_array_equal(gradient[absent], 0)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=1), ~absent)


def test_temperature_may_be_traced_and_is_a_constant():
    hidden, unembedding, targets = example(6, 3, 10, jnp.float32)

    def logp(tau):
        run = partial(token_stats, hidden, unembedding, targets, temperature=tau)
        return [run(implementation=name).logp for name in NAMED]

    traced = jax.jit(lambda tau: (logp(tau), jax.jacrev(lambda tau: [x.sum() for x in logp(tau)])(tau)))
    found, slopes = traced(0.5)
    for mine, constant, other, slope in zip(found, jax.jit(partial(logp, 0.5))(), traced(1.0)[0], slopes, strict=True):
        np.testing.assert_allclose(mine, constant, rtol=1e-6)
        assert np.max(np.abs(constant - other)) > 0.1
        assert slope == 0


@pytest.mark.parametrize("tiles", [Tile(100, 100), Tile(2, 3)])
def test_extreme_logits(tiles):
    hidden = np.array([[1e4], [-1e4], [1e4], [1e4]], np.float32)
    unembedding = np.array([[1.0], [-1.0], [0.0], [1.0], [-1.0], [0.5], [-0.5]], np.float32)
    targets = np.array([0, 1, 4, -1])
    found, stats = jax.jit(gradients(tiled(tiles, 1.0), targets))(hidden, unembedding)
    np.testing.assert_allclose(stats.logp, [-np.log(2), -np.log(2), -2e4 - np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(stats.entropy, [np.log(2), np.log(2), np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(stats.proxy, [0.5, 0.5, 1.5, 0], rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in found)


def test_a_certain_token_keeps_its_digits():
    """As π(y) → 1, the small logp, entropy and proxy keep a relative error below 1e-5, unlike 1 − 2π + Σπ²."""
    gap = np.array([5.0, 12.0, 20.0, 30.0])
    unembedding = np.array([[1.0], [0.0], [0.0]], np.float32)
    stats = jax.jit(tiled(Tile(4, 2), 1.0))(np.float32(gap)[:, None], unembedding, np.zeros(4, np.int32))
    other = np.exp(-gap) / (1 + 2 * np.exp(-gap))
    np.testing.assert_allclose(stats.logp, -np.log1p(2 * np.exp(-gap)), rtol=1e-5)
    np.testing.assert_allclose(stats.entropy, np.log1p(2 * np.exp(-gap)) + 2 * other * gap, rtol=1e-5)
    np.testing.assert_allclose(stats.proxy, 6 * other**2, rtol=1e-5)


def test_bfloat16_is_no_less_accurate_than_dense():
    hidden, unembedding, targets = example(64, 128, 1000, jnp.bfloat16, absent=False)
    both = jax.jit(lambda *x: [gradients(f, targets)(*x) for f in (tiled(Tile(24, 320)), dense)])
    ours, theirs = both(hidden, unembedding)
    with enable_x64():
        wide = (np.asarray(x).astype(np.float64) for x in (hidden, unembedding))
        truth = jax.tree.map(np.asarray, jax.jit(gradients(dense, targets))(*wide))

    def errors(results):
        pairs = zip(jax.tree.leaves(results), jax.tree.leaves(truth), strict=True)
        return [np.linalg.norm(np.asarray(r, np.float64) - t) / np.linalg.norm(t) for r, t in pairs]

    for mine, dense_error in zip(errors(ours), errors(theirs), strict=True):
        assert mine <= 1.1 * dense_error + 1e-7
        assert mine < 5e-3


def sub_jaxprs(jaxpr):
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sub_jaxprs(inner)


def largest(traced):
    jaxprs = list(sub_jaxprs(traced.jaxpr.jaxpr))
    return max(v.aval.size for j in jaxprs for e in j.eqns for v in e.outvars if hasattr(v.aval, "size"))


def test_the_logits_never_exist():
    n, d, v = 4096, 16, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (v, d))]
    targets = np.zeros(n, np.int32)
    traced = {
        name: jax.jit(gradients(partial(token_stats, implementation=name), targets)).trace(*shapes)
        for name in (None, "chunked", "reference")
    }
    assert largest(traced["reference"]) == n * v
    assert largest(traced["chunked"]) <= LOGITS < n * v / 4
    temporaries = {
        name: program.lower().compile().memory_analysis().temp_size_in_bytes for name, program in traced.items()
    }
    assert temporaries["reference"] >= 4 * n * v
    assert temporaries[None] == temporaries["chunked"] <= 3 * 4 * LOGITS


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(1, 1), (16384, 64), (2048, 32768), (100_003, 151_936), (1, 10**7), (10**7, 3)]
)
def test_best_tile_are_small_and_not_wasteful(tokens, vocabulary):
    n, v = best_tile(tokens, vocabulary)
    assert 0 < n <= tokens
    assert 0 < v <= vocabulary
    assert n * v <= 4 * LOGITS
    covered = -(-tokens // n) * n * -(-vocabulary // v) * v
    assert covered <= 1.05 * tokens * vocabulary + 16 * max(n, v)


def drop_last_tile(size, tile, body, carry):
    for start in range(0, max(size - tile, 1), tile):
        carry = body(start, jnp.ones(tile, bool), carry)
    return carry


def count_twice(size, tile, body, carry):
    """The last tile starts early, and its overlap with the tile before it is not masked."""
    for start in range(0, size, tile):
        carry = body(min(start, size - tile), jnp.ones(tile, bool), carry)
    return carry


def next_column(y, first, columns):
    return y[:, None] == (first + 1 + jnp.arange(columns, dtype=jnp.int32))[None]


def flat_slope(slope, log_pi, is_target):
    return jnp.zeros_like(log_pi)


def check_that_it_fails(monkeypatch, module, name, mutant):
    case = *SIZES[1], NAMES
    chunked_and_dense()  # cache the results without the mutant
    monkeypatch.setattr(module, name, mutant)
    found = jax.jit(partial(results, case, tiled(case[1])))(*example(*case[0]))
    with pytest.raises(AssertionError):
        check(case, found)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("cover", drop_last_tile), ("cover", count_twice), ("is_target", next_column), ("slope_at", flat_slope)],
)
def test_mutants_fail(x64, monkeypatch, name, mutant):
    check_that_it_fails(monkeypatch, chunked, name, mutant)


@pytest.mark.parametrize("mutant", [drop_last_tile, count_twice])
def test_mutants_of_the_gradients_alone_fail(x64, monkeypatch, mutant):
    check_that_it_fails(monkeypatch, gradient_tiles, "cover", mutant)


def test_no_tokens():
    inputs = np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), np.zeros(0, np.int32)
    stats = jax.jit(token_stats)(*inputs)
    assert [s.shape for s in stats] == [(0,)] * 3


GOOD = {
    "hidden": np.zeros((4, 3), np.float32),
    "unembedding": np.zeros((5, 3), np.float32),
    "targets": np.zeros(4, np.int32),
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden": np.zeros((2, 4, 3), np.float32)}, ValueError, r"hidden has shape \(2, 4, 3\).*\[N, D\]"),
        ({"hidden": np.zeros((4, 3), np.int32)}, TypeError, "hidden has dtype int32.*floating"),
        ({"unembedding": np.zeros((3, 5), np.float32)}, ValueError, r"unembedding has shape \(3, 5\).*D = 3"),
        ({"unembedding": np.zeros((0, 3), np.float32)}, ValueError, r"unembedding has shape \(0, 3\)"),
        ({"targets": np.zeros(5, np.int32)}, ValueError, r"targets has shape \(5,\).*N = 4"),
        ({"targets": np.zeros(4, np.float32)}, TypeError, "targets has dtype float32.*integer"),
        ({"temperature": 0.0}, ValueError, r"temperature = 0\.0.*positive"),
        ({"temperature": float("nan")}, ValueError, "temperature = nan"),
        ({"temperature": None}, ValueError, "temperature = None: expected a positive number"),
        ({"tile": 4}, ValueError, r"tile = 4: expected \(tokens, vocabulary\)"),
        ({"vocab_size": True}, ValueError, r"vocab_size = True: expected an integer in \[1, 5\]"),
        ({"axis_name": "x"}, ValueError, "axis_name = 'x': expected a mesh axis of the surrounding shard_map"),
        ({"width_axis": "x"}, ValueError, "width_axis = 'x': expected a mesh axis"),
        ({"temperature": np.ones(4, np.float32)}, ValueError, r"temperature has shape \(4,\).*scalar"),
        ({"implementation": "fast"}, ValueError, "implementation = 'fast'.*None or one of 'reference', 'chunked'"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        token_stats(**{**GOOD, **change})
