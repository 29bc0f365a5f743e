"""Options of token_stats (bias, softcap, mask, vocab_size, temperature) against NumPy and the definition; mutants."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import TokenStats, token_stats
from pallas_kernels._vocabulary import gradients as gradient_tiles
from pallas_kernels._vocabulary import tiles, vjp
from pallas_kernels.token_stats import chunked
from tests.kernels.heads import close, enable_x64, example, weights

N, D, V = 13, 5, 23
OPTIONS = {
    "bias": np.linspace(-2.0, 2.0, V),
    "softcap": 1.5,
    "mask": np.arange(N) % 3 > 0,
    "vocab_size": 17,
    "temperature": 0.7,
}
ALL = tuple(OPTIONS)
SUBSETS = [*itertools.combinations(OPTIONS, 1), ALL]
PAIRS = [*itertools.combinations(OPTIONS, 2)]


@pytest.fixture
def x64():
    with enable_x64():
        yield


def loop(hidden, unembedding, targets, bias=None, softcap=None, mask=None, vocab_size=V, temperature=1.0):
    rows = []
    for n, (h, y) in enumerate(zip(np.asarray(hidden), np.asarray(targets), strict=True)):
        if not 0 <= y < vocab_size or (mask is not None and not mask[n]):
            rows.append((0.0, 0.0, 0.0))
            continue
        z = [w @ h + (0 if bias is None else bias[v]) for v, w in enumerate(np.asarray(unembedding)[:vocab_size])]
        x = np.array([zv if softcap is None else softcap * np.tanh(zv / softcap) for zv in z]) / temperature
        pi = np.exp(x) / np.sum(np.exp(x))
        rows.append((np.log(pi[y]), -np.sum(pi * np.log(pi)), 1 - 2 * pi[y] + np.sum(pi**2)))
    return np.transpose(rows)


def chosen(names):
    return {name: jnp.asarray(OPTIONS[name]) if name in ("bias", "mask") else OPTIONS[name] for name in names}


def of_both(function):
    return lambda *inputs: [function(*inputs, implementation=name) for name in ("reference", "chunked")]


def values(names):
    return of_both(partial(token_stats, tile=(4, 8), **chosen(names)))


@cache
def all_values(pairs):
    """The results for every subset, or every pair, of options, from one program."""
    subsets = PAIRS if pairs else SUBSETS
    return jax.jit(lambda *inputs: {names: values(names)(*inputs) for names in subsets})(*example(N, D, V))


def check_definition(names, found):
    hidden, unembedding, targets = example(N, D, V)
    expected = loop(hidden, unembedding, targets, **{name: OPTIONS[name] for name in names})
    assert np.abs(expected - loop(hidden, unembedding, targets)).max() > 1e-2
    for stats in found:
        np.testing.assert_allclose(stats, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_definition_in_numpy(x64, names):
    check_definition(names, all_values(pairs=False)[names])


@pytest.mark.slow
@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_the_definition_of_two_options_in_numpy(x64, names):
    check_definition(names, all_values(pairs=True)[names])


def gradients(implementation, names, tile):
    targets = example(N, D, V)[2]

    def loss(hidden, unembedding, bias):
        options = chosen(names) | ({"bias": bias} if "bias" in names else {})
        stats = token_stats(hidden, unembedding, targets, tile=tile, implementation=implementation, **options)
        return sum(jnp.sum(w * getattr(stats, name)) for name, w in weights(N).items())

    return jax.grad(loss, (0, 1, 2))


def evaluated(function):
    return jax.jit(function)(*example(N, D, V)[:2], OPTIONS["bias"])


TILES = [None, (4, 8), (13, 8), (4, 23)]


@cache
def all_gradients(names):
    """(gradients of the definition, gradients of `chunked` by tile), from one program."""
    programs = [gradients("reference", names, None), *(gradients("chunked", names, tile) for tile in TILES)]
    defined, *found = evaluated(lambda *inputs: [program(*inputs) for program in programs])
    return defined, dict(zip(TILES, found, strict=True))


def check_gradients(names, found):
    expected, _ = all_gradients(names)
    assert all(np.abs(gradient).max() > 1e-2 for gradient in expected[: 2 + ("bias" in names)])
    close(found, expected, 1e-10)
    if "vocab_size" in names:
        np.testing.assert_array_equal(expected[1][OPTIONS["vocab_size"] :], 0)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(
    "names", [*(pytest.param((name,), marks=pytest.mark.slow) for name in ("bias", "softcap")), ALL], ids="+".join
)
def test_gradients_are_the_definitions(x64, names, tile):
    check_gradients(names, all_gradients(names)[1][tile])


def test_the_definitions_gradients_are_finite_differences(x64):
    hidden, unembedding, targets = example(N, D, V)
    stats_of = partial(token_stats, targets=targets, implementation="reference", **chosen([*OPTIONS][1:]))

    def loss(hidden, unembedding, bias):
        stats = stats_of(hidden, unembedding, bias=bias)
        return sum(jnp.sum(w * getattr(stats, name)) for name, w in weights(N).items())

    inputs = np.asarray(hidden), np.asarray(unembedding), OPTIONS["bias"]
    rng, step = np.random.default_rng(0), 1e-5
    moves = [step * rng.normal(size=x.shape) for x in inputs]
    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    ahead, behind = (run(*(x + sign * m for x, m in zip(inputs, moves, strict=True)))[0] for sign in (1, -1))
    found = sum(np.sum(g * m) for g, m in zip(run(*inputs)[1], moves, strict=True))
    np.testing.assert_allclose(found, (ahead - behind) / 2, rtol=1e-6)


def test_padding_and_masked_rows_may_hold_anything():
    """NaN in masked rows, and padding rows of the weight whose logits would dominate every softmax or are NaN."""
    hidden, unembedding, targets = map(np.asarray, example(N, D, V, jnp.float32))
    mask, size = OPTIONS["mask"], OPTIONS["vocab_size"]
    absent, padding = ~mask[:, None], np.arange(V)[:, None] >= size
    spoilt = np.where(absent, np.float32(np.nan), hidden), np.where(padding, np.float32(1e4), 1) * unembedding
    unknown = spoilt[0], np.where(padding, np.float32(np.nan), unembedding)

    def run(*inputs, implementation):
        def loss(*inputs):
            stats = token_stats(*inputs, targets, mask=mask, vocab_size=size, tile=(4, 8),
                                implementation=implementation)  # fmt: skip
            return sum(map(jnp.sum, stats)), stats

        return jax.grad(loss, (0, 1), has_aux=True)(*inputs)

    of_either = jax.jit(of_both(run))
    results = (of_either(*inputs) for inputs in ((hidden, unembedding), spoilt, unknown))
    for clean, *poisoned in zip(*results, strict=True):
        for other in poisoned:
            jax.tree.map(np.testing.assert_array_equal, clean, other)
        assert np.abs(clean[0][0]).max() > 0.1


NARROW = [("uint8", 256), ("int8", 128), ("int8", 300), ("uint16", 65536)]


@cache
def with_narrow_targets():
    ids = np.array([1, 2, 100, 127])
    inputs = [example(4, D, v, jnp.float32)[:2] for _, v in NARROW]
    targets = [[ids.astype(kind) for kind in (dtype, "int32")] for dtype, _ in NARROW]
    run = jax.jit(lambda *cases: [[of_both(token_stats)(*x, y) for y in pair] for x, pair in zip(*cases, strict=True)])
    return dict(zip(NARROW, run(inputs, targets), strict=True))


@pytest.mark.parametrize(("dtype", "v"), NARROW)
def test_targets_of_any_integer_type(dtype, v):
    for found, expected in zip(*with_narrow_targets()[dtype, v], strict=True):
        np.testing.assert_array_equal(found.logp, expected.logp)
        assert np.all(np.asarray(found.logp) < -0.1)


def test_a_cotangent_of_zero_costs_nothing():
    def products(names):
        hidden, unembedding, targets = example(N, D, V, jnp.float32)

        def loss(hidden):
            stats = token_stats(hidden, unembedding, targets, implementation="chunked")
            return sum(jnp.sum(getattr(stats, name)) for name in names)

        return str(jax.make_jaxpr(jax.grad(loss))(hidden)).count(" mul ")

    logp, entropy, proxy, everything = map(products, (["logp"], ["entropy"], ["proxy"], TokenStats._fields))
    assert logp < entropy < everything
    assert logp < proxy < everything


def count_products(monkeypatch, mask):
    """The number of tiles of logits that a program computes at run time."""
    made = []

    def counted(h, part, logits=chunked.logits):
        jax.debug.callback(lambda: made.append(1))
        return logits(h, part)

    monkeypatch.setattr(chunked, "logits", counted)
    hidden, unembedding, targets = example(16, D, V, jnp.float32, absent=False)
    run = partial(token_stats, unembedding=unembedding, targets=targets, tile=(4, V), implementation="chunked")
    jax.block_until_ready(jax.jit(jax.grad(lambda h, mask: run(h, mask=mask).logp.sum()))(hidden, mask))
    jax.effects_barrier()
    return len(made)


def test_tiles_of_masked_rows_are_skipped(monkeypatch):
    assert count_products(monkeypatch, np.ones(16, bool)) == 8  # 4 tiles, forward and backward
    monkeypatch.undo()
    assert count_products(monkeypatch, np.arange(16) < 5) == 4


def seen_twice(head, part, unseen):
    """The last tile starts early, and its overlap with the tile before it is not masked."""
    return None


def padding_too(tile, hidden, head, fitted=tiles.fitted):
    return fitted(tile, hidden, head._replace(size=V))


def uncapped(h, part, logits=tiles.logits):
    return logits(h, part)[0], None


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (chunked, "is_column", seen_twice),
        (gradient_tiles, "is_column", seen_twice),
        (chunked, "fitted", padding_too),
        (chunked, "logits", uncapped),
        (chunked, "logits", lambda h, part, logits=tiles.logits: logits(h, part._replace(bias=None))),
    ],
)
def test_mutants_fail(x64, monkeypatch, where, name, mutant):
    all_gradients(ALL)  # cache the results without the mutant
    monkeypatch.setattr(where, name, mutant)
    found = evaluated(gradients("chunked", ALL, (4, 8)))
    with pytest.raises(AssertionError):
        check_gradients(ALL, found)


def test_a_mask_that_is_forgotten_is_noticed(x64, monkeypatch):
    monkeypatch.setattr(vjp, "finish", lambda sums, y, finish=vjp.finish: finish(sums, jnp.zeros_like(y)))
    found = jax.jit(values(("mask",)))(*example(N, D, V))
    with pytest.raises(AssertionError):
        check_definition(("mask",), found)
