"""token_stats: chunked against its definition, the definition against finite differences, and mutants of both."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import token_stats
from pallas_kernels.token_stats import _gradients, chunked
from pallas_kernels.token_stats._tiles import LOGITS, best_tile
from pallas_kernels.token_stats._types import Tile
from tests.kernels.heads import NAMES, close, enable_x64, example, gradients, weighted

SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(NAMES, size)]
SIZES = [  # (N, D, V), tiles: exact, ragged, a last tile of one, one tile either way
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


def chunked_and_dense(sizes, tiles, names=NAMES):
    """Gradients and values of both, in one program."""
    *inputs, targets = example(*sizes)
    pair = jax.jit(lambda *x: tuple(gradients(f, targets, names)(*x) for f in (tiled(tiles), dense)))
    return pair(*inputs)


def test_definition_by_hand():
    """π = (1/2, 1/4, 1/4): logp(1) = −2 ln 2, H = 1.5 ln 2, proxy = 1 − 1/2 + 3/8."""
    unembedding = jnp.log(jnp.array([[2.0], [1.0], [1.0]]))
    for implementation in ("reference", "chunked", None):
        stats = token_stats(jnp.ones((1, 1)), unembedding, jnp.array([1]), implementation=implementation)
        np.testing.assert_allclose(np.ravel(stats), [-2 * np.log(2), 1.5 * np.log(2), 0.875], rtol=1e-6)
    halved = token_stats(jnp.ones((1, 1)), 2 * unembedding, jnp.array([1]), temperature=2.0)
    np.testing.assert_allclose(halved.logp, -2 * np.log(2), rtol=1e-6)


def test_definition_in_numpy(x64):
    hidden, unembedding, targets = example(9, 4, 15, absent=False)
    x = np.asarray(hidden) @ np.asarray(unembedding).T / 0.7
    pi = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    chosen = pi[np.arange(9), np.asarray(targets)]
    expected = np.log(chosen), -(pi * np.log(pi)).sum(1), 1 - 2 * chosen + (pi**2).sum(1)
    np.testing.assert_allclose(dense(hidden, unembedding, targets), expected, rtol=1e-12)


@pytest.mark.parametrize(("sizes", "tiles"), SIZES)
def test_chunked_is_the_definition_for_every_shape(x64, sizes, tiles):
    actual, expected = chunked_and_dense(sizes, tiles)
    close(actual, expected, 1e-10)
    assert sizes == (1, 1, 1) or all(np.abs(gradient).max() > 1e-2 for gradient in actual[0])


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_chunked_is_the_definition_for_every_subset_of_cotangents(x64, names):
    actual, expected = chunked_and_dense(*SIZES[1], names)
    close(actual, expected, 1e-10)
    assert all(np.abs(gradient).max() > 1e-2 for gradient in actual[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_the_finite_differences(x64, name):
    hidden, unembedding, targets = example(6, 3, 10)
    loss = jax.jit(lambda *inputs: weighted(tiled(Tile(4, 4)), targets, (name,))(*inputs)[0])
    found = jax.jit(jax.grad(loss, (0, 1)))(hidden, unembedding)
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
    hidden, targets = hidden.reshape(3, 4, 3), targets.reshape(3, 4)
    run = jax.jit(lambda h, y: gradients(tiled(Tile(3, 4)), y)(h, unembedding))
    looped = [run(h, y) for h, y in zip(hidden, targets, strict=True)]
    close(jax.vmap(run)(hidden, targets), jax.tree.map(lambda *parts: np.stack(parts), *looped), 1e-12)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_an_absent_target_is_silent_whatever_its_row_holds(implementation):
    hidden, unembedding, targets = example(13, 5, 23, jnp.float32)
    absent = (targets < 0) | (targets >= 23)
    assert int(jnp.sum(absent)) == 2

    run = jax.jit(lambda h: gradients(partial(token_stats, implementation=implementation), targets)(h, unembedding))
    clean, poisoned = run(hidden), run(jnp.where(absent[:, None], jnp.nan, hidden))
    for c, p in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(c, p)
    np.testing.assert_array_equal(np.stack(clean[1])[:, absent], 0)
    np.testing.assert_array_equal(clean[0][0][absent], 0)
    assert jnp.all(jnp.any(clean[0][0] != 0, axis=1) == ~absent)


def test_temperature_may_be_traced_and_is_a_constant():
    hidden, unembedding, targets = example(6, 3, 10, jnp.float32)
    for implementation in ("reference", "chunked"):

        def logp(tau, implementation=implementation):
            return token_stats(hidden, unembedding, targets, temperature=tau, implementation=implementation).logp

        np.testing.assert_allclose(jax.jit(logp)(0.5), logp(0.5), rtol=1e-6)
        assert jnp.max(jnp.abs(logp(0.5) - logp(1.0))) > 0.1
        assert jax.grad(lambda tau: jnp.sum(logp(tau)))(0.5) == 0


@pytest.mark.parametrize("tiles", [Tile(100, 100), Tile(2, 3)])
def test_extreme_logits(tiles):
    """±1e4: no NaN in values or gradients, and the certain token is certain."""
    hidden = jnp.array([[1e4], [-1e4], [1e4], [1e4]])
    unembedding = jnp.array([[1.0], [-1.0], [0.0], [1.0], [-1.0], [0.5], [-0.5]])
    targets = jnp.array([0, 1, 4, -1])
    found, stats = jax.jit(gradients(tiled(tiles, 1.0), targets))(hidden, unembedding)
    np.testing.assert_allclose(stats.logp, [-np.log(2), -np.log(2), -2e4 - np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(stats.entropy, [np.log(2), np.log(2), np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(stats.proxy, [0.5, 0.5, 1.5, 0], rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in found)


def test_a_certain_token_keeps_its_digits():
    """Where π(y) → 1, logp, entropy and proxy are small and still right to 1e-5 of themselves; 1 − 2π + Σπ² is not."""
    gap = np.array([5.0, 12.0, 20.0, 30.0])
    unembedding = jnp.array([[1.0], [0.0], [0.0]])
    stats = tiled(Tile(4, 2), 1.0)(jnp.asarray(gap, jnp.float32)[:, None], unembedding, jnp.zeros(4, jnp.int32))
    other = np.exp(-gap) / (1 + 2 * np.exp(-gap))
    np.testing.assert_allclose(stats.logp, -np.log1p(2 * np.exp(-gap)), rtol=1e-5)
    np.testing.assert_allclose(stats.entropy, np.log1p(2 * np.exp(-gap)) + 2 * other * gap, rtol=1e-5)
    np.testing.assert_allclose(stats.proxy, 6 * other**2, rtol=1e-5)


def test_bfloat16_is_no_less_accurate_than_dense():
    """Against float64 on the same bfloat16 inputs, errors at most 10 % above those of dense logits in float32."""
    hidden, unembedding, targets = example(64, 128, 1000, jnp.bfloat16, absent=False)
    ours, theirs = (jax.jit(gradients(f, targets))(hidden, unembedding) for f in (tiled(Tile(24, 320)), dense))
    with enable_x64():
        wide = (jnp.asarray(x).astype(jnp.float64) for x in (hidden, unembedding))
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


def largest(function, *inputs):
    """The elements of the largest array that the program makes or holds."""
    jaxprs = list(sub_jaxprs(jax.make_jaxpr(function)(*inputs).jaxpr))
    return max(v.aval.size for j in jaxprs for e in j.eqns for v in e.outvars if hasattr(v.aval, "size"))


def test_the_logits_never_exist():
    n, d, v = 4096, 16, 2048
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (v, d))]
    targets = jnp.zeros(n, jnp.int32)
    step = {
        name: gradients(partial(token_stats, implementation=name), targets) for name in (None, "chunked", "reference")
    }
    assert largest(step["reference"], *shapes) == n * v
    assert largest(step["chunked"], *shapes) <= LOGITS < n * v / 4
    temporaries = {
        name: jax.jit(f).lower(*shapes).compile().memory_analysis().temp_size_in_bytes for name, f in step.items()
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
    """The last tile starts early, and nothing says that its beginning has been seen."""
    for start in range(0, size, tile):
        carry = body(min(start, size - tile), jnp.ones(tile, bool), carry)
    return carry


def next_column(y, first, columns):
    return y[:, None] == (first + 1 + jnp.arange(columns, dtype=jnp.int32))[None]


def flat_slope(slope, log_pi, is_target):
    return jnp.zeros_like(log_pi)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("cover", drop_last_tile), ("cover", count_twice), ("is_target", next_column), ("slope_at", flat_slope)],
)
def test_mutants_fail(x64, monkeypatch, name, mutant):
    monkeypatch.setattr(chunked, name, mutant)
    with pytest.raises(AssertionError):
        test_chunked_is_the_definition_for_every_shape(x64, *SIZES[1])


@pytest.mark.parametrize("mutant", [drop_last_tile, count_twice])
def test_mutants_of_the_gradients_alone_fail(x64, monkeypatch, mutant):
    monkeypatch.setattr(_gradients, "cover", mutant)
    with pytest.raises(AssertionError):
        test_chunked_is_the_definition_for_every_shape(x64, *SIZES[1])


def test_no_tokens():
    stats = token_stats(jnp.zeros((0, 4)), jnp.ones((3, 4)), jnp.zeros(0, jnp.int32))
    assert [s.shape for s in stats] == [(0,)] * 3


GOOD = {"hidden": jnp.zeros((4, 3)), "unembedding": jnp.zeros((5, 3)), "targets": jnp.zeros(4, jnp.int32)}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"hidden": jnp.zeros((2, 4, 3))}, ValueError, r"hidden is of shape \(2, 4, 3\).*\[N, D\]"),
        ({"hidden": jnp.zeros((4, 3), jnp.int32)}, TypeError, "hidden is of dtype int32.*floating"),
        ({"unembedding": jnp.zeros((3, 5))}, ValueError, r"unembedding is of shape \(3, 5\).*D = 3"),
        ({"unembedding": jnp.zeros((0, 3))}, ValueError, r"unembedding is of shape \(0, 3\)"),
        ({"targets": jnp.zeros(5, jnp.int32)}, ValueError, r"targets is of shape \(5,\).*N = 4"),
        ({"targets": jnp.zeros(4)}, TypeError, "targets is of dtype float32.*integer"),
        ({"temperature": 0.0}, ValueError, r"temperature is 0\.0.*positive"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan"),
        ({"temperature": None}, ValueError, "temperature is None; it should be a positive number"),
        ({"tile": 4}, ValueError, r"tile is 4; it should be \(tokens, vocabulary\)"),
        ({"vocab_size": True}, ValueError, r"vocab_size is True; it should be an integer in \[1, 5\]"),
        ({"axis_name": "x"}, ValueError, "axis_name is 'x'; it should be an axis of the mesh of the shard_map"),
        ({"width_axis": "x"}, ValueError, "width_axis is 'x'; it should be an axis of the mesh"),
        ({"temperature": jnp.ones(4)}, ValueError, r"temperature is of shape \(4,\).*scalar"),
        ({"implementation": "fast"}, ValueError, "implementation is 'fast'.*None or one of 'reference', 'chunked'"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        token_stats(**{**GOOD, **change})
