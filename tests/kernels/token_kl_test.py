"""token_kl: chunked against the definition, the definition against loops in NumPy, and mutants."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import token_kl
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels.token_kl import chunked

reference = importlib.import_module("pallas_kernels.token_kl.reference")
SIZES = [((8, 4, 3, 12), Tile(4, 4)), ((13, 5, 5, 23), Tile(4, 8)), ((7, 5, 2, 11), Tile(100, 100))]


def enable_x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64()


def example(n, d, e, v, dtype=jnp.float64, scale=1.0):
    """(hidden, unembedding, ref_hidden, ref_unembedding, mask); masked rows hold NaN."""
    rng = np.random.default_rng(n * 100 + v)
    mask = np.arange(n) % 4 != 1
    rows = [np.where(mask[:, None], scale * rng.normal(size=(n, width)), np.nan) for width in (d, e)]
    tables = [rng.normal(size=(v, width)) for width in (d, e)]
    return *(x.astype(dtype) for x in (rows[0], tables[0], rows[1], tables[1])), mask


def loss(function):
    def of(hidden, unembedding, *others):
        kl = function(hidden, unembedding, *others)
        return jnp.sum(jnp.cos(jnp.arange(kl.shape[0], dtype=kl.dtype)) * kl), kl

    return jax.grad(of, (0, 1), has_aux=True)


def both(tiles):
    return jax.jit(lambda *inputs: [loss(function)(*inputs) for function in (tiled(tiles), dense)])


def tiled(tiles):
    return lambda *inputs: chunked.token_kl(*inputs, temperature=0.7, tile=tiles)


def dense(*inputs):
    return token_kl(*inputs, temperature=0.7, implementation="reference")


def agree(actual, expected, tolerance):
    return all(
        np.all(np.abs(a - e) <= tolerance * max(1.0, np.max(np.abs(e))))
        for a, e in zip(*(map(np.asarray, jax.tree.leaves(x)) for x in (actual, expected)), strict=True)
    )


def test_definition_by_loops():
    hidden, unembedding, ref_hidden, ref_unembedding, mask = example(5, 3, 2, 6, jnp.float32)
    expected = np.zeros(5)
    for n in np.flatnonzero(mask):
        x, z = np.float64(unembedding) @ hidden[n] / 0.7, np.float64(ref_unembedding) @ ref_hidden[n] / 0.7
        pi, rho = np.exp(x) / np.exp(x).sum(), np.exp(z) / np.exp(z).sum()
        expected[n] = sum(a * np.log(a / b) for a, b in zip(pi, rho, strict=True))
    actual = jax.jit(dense)(hidden, unembedding, ref_hidden, ref_unembedding, mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert expected.max() > 0.1


@pytest.mark.parametrize(("sizes", "tiles"), SIZES)
def test_chunked_is_the_definition_with_its_gradients(sizes, tiles):
    with enable_x64():
        inputs = example(*sizes)
        ours, theirs = both(tiles)(*inputs)
        assert agree(ours, theirs, 1e-12)
        (dh, _), kl = theirs
        assert not np.any(np.asarray(dh)[~inputs[-1]])
        assert not np.any(np.asarray(kl)[~inputs[-1]])
        assert min(np.max(np.abs(x)) for x in jax.tree.leaves(ours)) > 0.1


def test_the_gradient_of_the_definition_is_the_differences():
    with enable_x64():
        inputs = example(4, 3, 3, 5)
        present = [np.where(inputs[-1][:, None], x, 0.0) for x in (inputs[0], inputs[2])]
        inputs = present[0], inputs[1], present[1], inputs[3], inputs[4]
        run = jax.jit(loss(dense))
        gradients, _ = run(*inputs)
        rng = np.random.default_rng(0)
        steps = [rng.normal(size=x.shape) for x in inputs[:2]]

        def along(s):
            _, kl = run(*(x + s * e for x, e in zip(inputs[:2], steps, strict=True)), *inputs[2:])
            return np.sum(np.cos(np.arange(4.0)) * kl)

        slope = sum(np.sum(g * e) for g, e in zip(gradients, steps, strict=True))
        np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, rtol=1e-7)
        assert abs(slope) > 1e-2


def test_the_reference_has_no_gradient_and_equal_policies_no_divergence():
    hidden, unembedding, _, _, mask = example(8, 4, 3, 12, jnp.float32)

    @jax.jit
    def run(w):
        kl, pull = jax.vjp(lambda w: tiled(Tile(4, 4))(hidden, unembedding, hidden, w, mask), w)
        return kl, pull(jnp.ones_like(kl))

    np.testing.assert_allclose(run(unembedding)[0], np.zeros(8), atol=2e-6)
    assert not np.any(run(unembedding + np.float32(1))[1])


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_is_near_float64(scale):
    """Also with logits in the hundreds, errors are at most 4 times those of the dense computation."""
    with enable_x64():
        low = example(13, 5, 5, 23, jnp.float32, scale)
        exact = jax.jit(loss(dense))(*(x if x.dtype == bool else x.astype(np.float64) for x in low))
        ours, theirs = both(Tile(4, 8))(*low)
    for x, y, z in zip(*map(jax.tree.leaves, (ours, theirs, exact)), strict=True):
        assert x.dtype == jnp.float32
        error, least = (np.max(np.abs(np.asarray(a) - np.asarray(z))) for a in (x, y))
        assert error <= 4 * least + 1e-6 * np.max(np.abs(z))


def test_bfloat16_is_accumulated_in_float32():
    low = example(13, 5, 5, 23, jnp.bfloat16)
    ours, theirs = both(Tile(4, 8))(*low)
    assert ours[1].dtype == jnp.float32
    assert agree(ours[1], theirs[1], 1e-5)


def test_no_logits_of_either_policy_are_held():
    n, d, v = 512, 8, 32768
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((n, d), (v, d), (n, d), (v, d))]
    compiled = jax.jit(loss(token_kl)).lower(*shapes, jax.ShapeDtypeStruct((n,), jnp.bool_)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * n * v * 4


def test_mutants_fail(monkeypatch):
    cover = chunked.cover
    for mutant in (
        lambda size, tile, body, carry: cover(max(tile, size - tile), tile, body, carry),  # the last tile dropped
        lambda size, tile, body, carry: cover(size, tile, lambda s, f, c: body(s, jnp.ones_like(f), c), carry),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(chunked, "cover", mutant)
            chunked._tiled.cache_clear()
            with pytest.raises(AssertionError):
                test_chunked_is_the_definition_with_its_gradients(*SIZES[1])
    chunked._tiled.cache_clear()


def test_errors_name_the_argument():
    hidden, unembedding, ref_hidden, ref_unembedding, mask = example(5, 3, 2, 6, jnp.float32)
    for inputs, error, words in (
        ((hidden, unembedding.T, ref_hidden, ref_unembedding, mask), ValueError, r"unembedding has shape \(3, 6\)"),
        ((hidden, unembedding, ref_hidden[1:], ref_unembedding, mask), ValueError, r"ref_hidden has shape \(4, 2\)"),
        ((hidden, unembedding, ref_hidden, ref_unembedding[1:], mask), ValueError, r"\(5, 2\).*\(6, 2\)"),
        ((hidden, unembedding, ref_hidden, ref_unembedding, mask[1:]), ValueError, r"mask has shape \(4,\)"),
        (
            (hidden, unembedding, ref_hidden, ref_unembedding, mask.astype(np.int32)),
            TypeError,
            "mask has dtype int32",
        ),
    ):
        with pytest.raises(error, match=words):
            token_kl(*inputs)
    with pytest.raises(ValueError, match="temperature = 0"):
        token_kl(hidden, unembedding, ref_hidden, ref_unembedding, mask, temperature=0)
