"""token_topk against NumPy in float64, its definition and token_stats; mutants."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import TokenStats, token_stats, token_topk
from pallas_kernels.token_stats import chunked as token_stats_chunked
from pallas_kernels.token_topk import chunked
from tests.kernels.heads import close, enable_x64, example

NAMED = "chunked", "reference"
SIZES = [  # (N, D, V), k, tile: multiples, ragged, k = V, k above the tile, last tile with one entry, one tile per axis
    ((8, 4, 12), 3, (4, 4)),
    ((13, 5, 23), 4, (4, 8)),
    ((13, 5, 23), 23, (4, 8)),
    ((13, 5, 23), 11, (4, 3)),
    ((9, 3, 17), 2, (8, 16)),
    ((13, 5, 23), 4, (13, 8)),
    ((13, 5, 23), 4, (4, 23)),
    ((7, 5, 11), 1, (100, 100)),
    ((1, 1, 1), 1, (1, 1)),
]
N, D, V = SIZES[1][0]
OPTIONS = {
    "bias": np.linspace(-2.0, 2.0, V),
    "softcap": 1.5,
    "mask": np.arange(N) % 3 > 0,
    "vocab_size": 17,
    "temperature": 0.7,
}
SUBSETS = [(), *itertools.combinations(OPTIONS, 1), tuple(OPTIONS)]


@pytest.fixture
def x64():
    with enable_x64():
        yield


def by_sorting(hidden, unembedding, targets, k, bias=0.0, softcap=None, mask=True, vocab_size=None, temperature=1.0):
    """(ids, logp) from all logits; a stable sort of −x puts the lower id first among equal logits."""
    size = unembedding.shape[0] if vocab_size is None else vocab_size
    x = (np.float64(hidden) @ np.float64(unembedding).T + bias)[:, :size]
    x = (x if softcap is None else softcap * np.tanh(x / softcap)) / temperature
    log_pi = x - np.log(np.sum(np.exp(x), axis=1, keepdims=True))
    ids = np.argsort(-x, axis=1, kind="stable")[:, :k]
    present = (mask & (np.asarray(targets) >= 0) & (np.asarray(targets) < size))[:, None]
    return np.where(present, ids, 0), np.where(present, np.take_along_axis(log_pi, ids, axis=1), 0)


def agrees(found, expected):
    np.testing.assert_array_equal(found.ids, expected[0])
    np.testing.assert_allclose(found.logp, expected[1], rtol=1e-12, atol=1e-12)


def of_both(inputs, k, tile, **options):
    found = {name: token_topk(*inputs, k=k, tile=tile, implementation=name, **options) for name in NAMED}
    return found, token_stats(*inputs, implementation="reference", **options)


@cache
def of_all_sizes():
    inputs = {sizes: example(*sizes) for sizes, _, _ in SIZES}
    run = jax.jit(lambda inputs: [of_both(inputs[sizes], k, tile) for sizes, k, tile in SIZES])
    return dict(zip(SIZES, run(inputs), strict=True))


def check_sizes(case, found):
    (stats, top), (sizes, k, _) = found, case
    agrees(top, by_sorting(*example(*sizes), k))
    assert top.ids.dtype == jnp.int32
    close(stats, of_all_sizes()[case][1], 1e-12)


@pytest.mark.parametrize("implementation", NAMED)
@pytest.mark.parametrize(("sizes", "k", "tile"), SIZES)
def test_the_first_of_all_logits_sorted(x64, sizes, k, tile, implementation):
    case = sizes, k, tile
    check_sizes(case, of_all_sizes()[case][0][implementation])


def with_long_rows():
    """A head in which every second row of the weight is scaled by 3, also among the padding rows."""
    hidden, unembedding, targets = example(N, D, V)
    return hidden, np.asarray(unembedding) * np.where(np.arange(V) % 2 == 0, 1, 3)[:, None], targets


@cache
def of_all_options():
    def run(*inputs):
        return [of_both(inputs, 5, (4, 8), **{name: OPTIONS[name] for name in names}) for names in SUBSETS]

    return dict(zip(SUBSETS, jax.jit(run)(*with_long_rows()), strict=True))


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_option(x64, names):
    expected = by_sorting(*with_long_rows(), 5, **{name: OPTIONS[name] for name in names})
    plain = by_sorting(*with_long_rows(), 5)
    assert not names or np.abs(expected[1] - plain[1]).max() > 1e-2
    found, expected_stats = of_all_options()[names]
    for stats, top in found.values():
        agrees(top, expected)
        close(stats, expected_stats, 1e-12)


def with_ties():
    """A head whose weight repeats five rows of integers, so each logit occurs four or five times, in every tile."""
    rng = np.random.default_rng(0)
    hidden, rows = rng.integers(-2, 3, (N, D)), rng.integers(-2, 3, (5, D))
    return np.float32(hidden), np.float32(rows[np.arange(V) % 5]), np.zeros(N, np.int32)


@pytest.mark.parametrize("implementation", NAMED)
def test_of_equal_logits_the_lower_id_is_first(implementation):
    ids, _ = by_sorting(*with_ties(), 9)
    _, top = jax.jit(partial(token_topk, k=9, tile=(4, 8), implementation=implementation))(*with_ties())
    np.testing.assert_array_equal(top.ids, ids)
    assert np.mean(np.diff(top.logp) == 0) > 0.5


def test_by_hand():
    inputs = np.ones((1, 1), np.float32), np.log(np.array([[1.0], [4.0], [1.0], [2.0]], np.float32)), np.array([3])
    run = jax.jit(lambda *inputs: [token_topk(*inputs, k=3, implementation=name) for name in (*NAMED, None)])
    for stats, top in run(*inputs):
        np.testing.assert_array_equal(top.ids, [[1, 3, 0]])
        np.testing.assert_allclose(np.exp(top.logp), [[0.5, 0.25, 0.125]], rtol=1e-6)
        np.testing.assert_allclose(stats.logp, [np.log(0.25)], rtol=1e-6)


@pytest.mark.parametrize("implementation", NAMED)
def test_absent_rows_and_padding_may_hold_anything(implementation):
    hidden, unembedding, targets = map(np.asarray, example(N, D, V, jnp.float32))
    mask, size = OPTIONS["mask"], OPTIONS["vocab_size"]
    absent = ~mask | (targets < 0) | (targets >= size)
    assert 0 < absent.sum() < N
    run = jax.jit(partial(token_topk, targets=targets, mask=mask, vocab_size=size, k=size, tile=(4, 8),
                          implementation=implementation))  # fmt: skip
    clean = run(hidden, unembedding)
    padding = np.arange(V)[:, None] >= size
    poisoned = run(
        np.where(absent[:, None], np.float32(np.nan), hidden), np.where(padding, np.float32(1e9), unembedding)
    )
    for c, p in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(c, p)
        np.testing.assert_array_equal(c[absent], 0)
    for row in np.asarray(clean[1].ids)[~absent]:
        assert sorted(row) == list(range(size))
    np.testing.assert_allclose(np.exp(clean[1].logp).sum(1)[~absent], 1, rtol=1e-5)


def test_banned_tokens_precede_padding_columns():
    bias = np.where(np.arange(12) < 3, np.float32(0), np.float32(-np.inf))
    inputs = np.ones((1, 2), np.float32), np.ones((12, 2), np.float32), np.zeros(1, np.int32)
    _, top = jax.jit(partial(token_topk, k=10, tile=(1, 4), vocab_size=10, implementation="chunked"))(
        *inputs, bias=bias
    )
    np.testing.assert_array_equal(top.ids, [range(10)])
    np.testing.assert_allclose(np.exp(top.logp), [[1 / 3] * 3 + [0] * 7], rtol=1e-6)


def test_bfloat16_is_ranked_and_normalized_in_float32():
    inputs = example(N, D, V, jnp.bfloat16)
    run = jax.jit(lambda *inputs: [token_topk(*inputs, k=5, tile=(4, 8), implementation=name) for name in NAMED])
    (stats, top), (_, expected) = run(*inputs)
    assert stats.logp.dtype == top.logp.dtype == jnp.float32
    np.testing.assert_array_equal(top.ids, expected.ids)
    np.testing.assert_allclose(top.logp, expected.logp, rtol=1e-5, atol=1e-6)


def test_everything_is_a_constant():
    hidden, unembedding, targets = example(N, D, V, jnp.float32)

    def outputs(hidden, unembedding, bias, tau):
        stats, top = token_topk(hidden, unembedding, targets, k=3, bias=bias, temperature=tau, tile=(4, 8))
        return *stats, top.logp

    inputs = hidden, unembedding, np.ones(V, np.float32), np.float32(0.7)

    @jax.jit
    def run(*inputs):
        gradients = jax.grad(lambda *x: sum(map(jnp.sum, outputs(*x))), (0, 1, 2, 3))(*inputs)
        return outputs(*inputs), gradients, jax.jvp(outputs, inputs, inputs)[1]

    values, gradients, tangents = run(*inputs)
    assert all(np.abs(x).max() > 0.1 for x in values)
    for x in jax.tree.leaves((gradients, tangents)):
        np.testing.assert_array_equal(x, 0)


def test_vmap_agrees_with_a_loop():
    hidden, unembedding, targets = example(12, 3, 10, jnp.float32)
    hidden, targets = np.reshape(hidden, (3, 4, 3)), np.reshape(targets, (3, 4))
    run = jax.jit(lambda h, y: token_topk(h, unembedding, y, k=4, tile=(3, 4), implementation="chunked"))
    looped = [run(h, y) for h, y in zip(hidden, targets, strict=True)]
    close(jax.vmap(run)(hidden, targets), jax.tree.map(lambda *parts: np.stack(parts), *looped), 1e-6)


def test_the_logits_never_exist():
    n, d, v, k = 1024, 8, 16384, 20
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (v, d))]
    held = {}
    for name in (None, "reference"):
        run = jax.jit(partial(token_topk, targets=jnp.zeros(n, jnp.int32), k=k, implementation=name))
        held[name] = run.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert held["reference"] >= 4 * n * v
    assert held[None] < 4 * n * v / 4


def drop_last_tile(size, tile, body, carry):
    for start in range(0, max(size - tile, 1), tile):
        carry = body(start, jnp.ones(tile, bool), carry)
    return carry


def seen_twice(head, part, unseen):
    return None


def only_the_tile(best, x, first, is_column, with_tile=chunked.with_tile):
    return with_tile(best._replace(x=jnp.full_like(best.x, -jnp.inf)), x, first, is_column)


def within_tile(best, x, first, is_column, with_tile=chunked.with_tile):
    return with_tile(best, x, 0, is_column)


def unnormalized(sums, y, finish=chunked.finish):
    stats, (top, log_total) = finish(sums, y)
    return stats, (top, jnp.zeros_like(log_total))


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (token_stats_chunked, "cover", drop_last_tile),
        (token_stats_chunked, "is_column", seen_twice),
        (chunked, "with_tile", only_the_tile),
        (chunked, "with_tile", within_tile),
        (chunked, "finish", unnormalized),
    ],
)
def test_mutants_fail(x64, monkeypatch, where, name, mutant):
    of_all_sizes()  # cache the results without the mutant
    monkeypatch.setattr(where, name, mutant)
    sizes, k, tile = SIZES[1]
    found = jax.jit(partial(token_topk, k=k, tile=tile, implementation="chunked"))(*example(*sizes))
    with pytest.raises(AssertionError):
        check_sizes(SIZES[1], found)


def test_mutants_of_ties_and_padding_fail(monkeypatch):
    def later_first(best, x, first, is_column, with_tile=chunked.with_tile):
        return with_tile(best._replace(x=best.x - 1e-3), x, first, is_column)

    with monkeypatch.context() as patch:
        patch.setattr(chunked, "with_tile", later_first)
        with pytest.raises(AssertionError):
            test_of_equal_logits_the_lower_id_is_first("chunked")
    with monkeypatch.context() as patch:
        fitted = token_stats_chunked.fitted
        patch.setattr(token_stats_chunked, "fitted", lambda tile, h, head: fitted(tile, h, head._replace(size=V)))
        with pytest.raises(AssertionError):
            test_absent_rows_and_padding_may_hold_anything("chunked")


def test_no_tokens():
    inputs = np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), np.zeros(0, np.int32)
    stats, top = jax.jit(partial(token_topk, k=2))(*inputs)
    assert isinstance(stats, TokenStats)
    assert [x.shape for x in (*stats, *top)] == [(0,)] * 3 + [(0, 2)] * 2


GOOD = {
    "hidden": np.zeros((4, 3), np.float32),
    "unembedding": np.zeros((5, 3), np.float32),
    "targets": np.zeros(4, np.int32),
    "k": 2,
}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, ValueError, r"token_topk: k = 0: expected an integer in \[1, 5\]"),
        ({"k": 6}, ValueError, r"k = 6.*\[1, 5\]"),
        ({"k": 4, "vocab_size": 3}, ValueError, r"k = 4.*\[1, 3\]"),
        ({"k": 2.0}, ValueError, r"k = 2\.0.*integer"),
        ({"vocab_size": 6}, ValueError, r"token_topk: vocab_size = 6.*\[1, 5\]"),
        (
            {"hidden": np.zeros((2, 4, 3), np.float32)},
            ValueError,
            r"token_topk: hidden has shape \(2, 4, 3\).*\[N, D\]",
        ),
        ({"targets": np.zeros(4, np.float32)}, TypeError, "token_topk: targets has dtype float32.*integer"),
        ({"mask": np.ones(3, bool)}, ValueError, r"token_topk: mask has shape \(3,\).*N = 4"),
        ({"temperature": 0.0}, ValueError, r"token_topk: temperature = 0\.0.*positive"),
        ({"tile": (4, 0)}, ValueError, r"token_topk: tile = \(4, 0\)"),
        ({"implementation": "fast"}, ValueError, "implementation = 'fast'.*None or one of 'reference', 'chunked'"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        token_topk(**{**GOOD, **change})
