"""token_stats with a bias, a soft cap, a mask and a padded vocabulary: against NumPy, the definition, and mutants."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import TokenStats, token_stats
from pallas_kernels.token_stats import _gradients, _rule, _tiles, chunked
from tests.kernels.heads import close, enable_x64, example, weights

N, D, V = 13, 5, 23
OPTIONS = {
    "bias": np.linspace(-2.0, 2.0, V),
    "softcap": 1.5,
    "mask": np.arange(N) % 3 > 0,
    "vocab_size": 17,
    "temperature": 0.7,
}
SUBSETS = [names for size in (1, 2, 5) for names in itertools.combinations(OPTIONS, size)]


@pytest.fixture
def x64():
    with enable_x64():
        yield


def loop(hidden, unembedding, targets, bias=None, softcap=None, mask=None, vocab_size=V, temperature=1.0):
    """The docstring's equations, a row at a time."""
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


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_definition_in_numpy(x64, names):
    hidden, unembedding, targets = example(N, D, V)
    expected = loop(hidden, unembedding, targets, **{name: OPTIONS[name] for name in names})
    assert np.abs(expected - loop(hidden, unembedding, targets)).max() > 1e-2
    for implementation in ("reference", "chunked"):
        found = token_stats(hidden, unembedding, targets, tile=(4, 8), implementation=implementation, **chosen(names))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def gradients(implementation, names, tile):
    hidden, unembedding, targets = example(N, D, V)

    def loss(hidden, unembedding, bias):
        options = chosen(names) | ({"bias": bias} if "bias" in names else {})
        stats = token_stats(hidden, unembedding, targets, tile=tile, implementation=implementation, **options)
        return sum(jnp.sum(w * getattr(stats, name)) for name, w in weights(N).items())

    return jax.jit(jax.grad(loss, (0, 1, 2)))(hidden, unembedding, jnp.asarray(OPTIONS["bias"]))


@pytest.mark.parametrize("tile", [None, (4, 8), (13, 8), (4, 23)], ids=str)
@pytest.mark.parametrize("names", [SUBSETS[0], SUBSETS[1], SUBSETS[-1]], ids="+".join)
def test_gradients_are_the_definitions(x64, names, tile):
    expected = gradients("reference", names, None)
    assert all(np.abs(gradient).max() > 1e-2 for gradient in expected[: 2 + ("bias" in names)])
    close(gradients("chunked", names, tile), expected, 1e-10)
    if "vocab_size" in names:
        np.testing.assert_array_equal(expected[1][OPTIONS["vocab_size"] :], 0)


def test_the_definitions_gradients_are_finite_differences(x64):
    hidden, unembedding, targets = example(N, D, V)
    run = partial(token_stats, targets=targets, implementation="reference", **chosen([*OPTIONS][1:]))

    def loss(hidden, unembedding, bias):
        stats = run(hidden, unembedding, bias=bias)
        return sum(jnp.sum(w * getattr(stats, name)) for name, w in weights(N).items())

    inputs = hidden, unembedding, jnp.asarray(OPTIONS["bias"])
    rng, step = np.random.default_rng(0), 1e-5
    moves = [step * rng.normal(size=x.shape) for x in inputs]
    ahead, behind = (loss(*(x + sign * m for x, m in zip(inputs, moves, strict=True))) for sign in (1, -1))
    found = sum(np.sum(g * m) for g, m in zip(jax.grad(loss, (0, 1, 2))(*inputs), moves, strict=True))
    np.testing.assert_allclose(found, (ahead - behind) / 2, rtol=1e-6)


def test_padding_and_masked_rows_may_hold_anything():
    """NaN where the mask is false, and rows of the weight beyond the vocabulary that would win every softmax."""
    hidden, unembedding, targets = example(N, D, V, jnp.float32)
    mask, size = jnp.asarray(OPTIONS["mask"]), OPTIONS["vocab_size"]
    spoilt = jnp.where(mask[:, None], hidden, jnp.nan), unembedding.at[size:].set(1e4 * unembedding[size:])
    unknown = spoilt[0], unembedding.at[size:].set(jnp.nan)

    def run(hidden, unembedding, implementation):
        def loss(*inputs):
            stats = token_stats(*inputs, targets, mask=mask, vocab_size=size, tile=(4, 8),
                                implementation=implementation)  # fmt: skip
            return sum(map(jnp.sum, stats)), stats

        return jax.grad(loss, (0, 1), has_aux=True)(hidden, unembedding)

    for implementation in ("reference", "chunked"):
        clean = run(hidden, unembedding, implementation)
        for poisoned in (run(*spoilt, implementation), run(*unknown, implementation)):
            for c, p in zip(jax.tree.leaves(clean), jax.tree.leaves(poisoned), strict=True):
                np.testing.assert_array_equal(c, p)
        assert np.abs(clean[0][0]).max() > 0.1


@pytest.mark.parametrize(("dtype", "v"), [("uint8", 256), ("int8", 128), ("int8", 300), ("uint16", 65536)])
def test_targets_of_any_integer_type(dtype, v):
    """Also of one whose numbers end where the vocabulary does, which wrapped around."""
    hidden, unembedding, _ = example(4, D, v, jnp.float32)
    ids = np.array([1, 2, 100, 127])
    for implementation in ("reference", "chunked"):
        found, expected = (
            token_stats(hidden, unembedding, jnp.asarray(ids, kind), implementation=implementation)
            for kind in (dtype, "int32")
        )
        np.testing.assert_array_equal(found.logp, expected.logp)
        assert np.all(np.asarray(found.logp) < -0.1)


def test_a_cotangent_of_zero_costs_nothing():
    """Each output that a loss reads adds terms to the gradient of the logits; the others' are not in the program."""

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
    """How many tiles of logits a program makes when it runs."""
    made = []

    def counted(h, part, logits=chunked.logits):
        jax.debug.callback(lambda: made.append(1))
        return logits(h, part)

    monkeypatch.setattr(chunked, "logits", counted)
    hidden, unembedding, targets = example(16, D, V, jnp.float32, absent=False)
    jax.block_until_ready(jax.grad(lambda h: token_stats(h, unembedding, targets, mask=mask, tile=(4, V),
                                                         implementation="chunked").logp.sum())(hidden))  # fmt: skip
    jax.effects_barrier()
    return len(made)


def test_tiles_of_masked_rows_are_skipped(monkeypatch):
    assert count_products(monkeypatch, jnp.ones(16, bool)) == 8  # 4 tiles, forward and backward
    monkeypatch.undo()
    assert count_products(monkeypatch, jnp.arange(16) < 5) == 4


def seen_twice(head, part, unseen):
    """The last tile starts early, and nothing says that its beginning has been seen."""
    return None


def padding_too(tile, hidden, head, fitted=_tiles.fitted):
    return fitted(tile, hidden, head._replace(size=V))


def uncapped(h, part, logits=_tiles.logits):
    return logits(h, part)[0], None


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (chunked, "is_column", seen_twice),
        (_gradients, "is_column", seen_twice),
        (chunked, "fitted", padding_too),
        (chunked, "logits", uncapped),
        (chunked, "logits", lambda h, part, logits=_tiles.logits: logits(h, part._replace(bias=None))),
    ],
)
def test_mutants_fail(x64, monkeypatch, where, name, mutant):
    monkeypatch.setattr(where, name, mutant)
    with pytest.raises(AssertionError):
        test_gradients_are_the_definitions(x64, tuple(OPTIONS), (4, 8))


def test_a_mask_that_is_forgotten_is_noticed(x64, monkeypatch):
    monkeypatch.setattr(_rule, "finish", lambda sums, y, finish=_rule.finish: finish(sums, jnp.zeros_like(y)))
    with pytest.raises(AssertionError):
        test_the_definition_in_numpy(x64, ("mask",))
