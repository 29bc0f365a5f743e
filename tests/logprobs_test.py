from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import TokenStats
from pallas_kernels._vocabulary import statistics
from rljax import logprobs
from rljax.logprobs import logps_at, token_kls, token_logps
from tests.together import together

B, T, D, V = 3, 7, 5, 11  # 21 rows, not a multiple of 8


@pytest.fixture(name="example", scope="module")
def example_fixture():
    rng = np.random.default_rng(0)
    hidden, unembedding = (rng.normal(size=s).astype(np.float32) for s in ((B, T, D), (V, D)))
    mask = rng.random((B, T)) < 0.6
    mask[0, 0] = mask[1, -1] = True
    return hidden, unembedding, rng.integers(0, V, (B, T)).astype(np.int32), mask


def loss(hidden, unembedding, tokens, mask, **options):
    stats = token_logps(hidden, unembedding, tokens, mask, temperature=0.7, **options)
    phase = jnp.arange(tokens.size, dtype=jnp.float32).reshape(tokens.shape)
    return sum(jnp.sum(jnp.cos(phase + i) * stat) for i, stat in enumerate(stats)), stats


GRADIENTS = jax.value_and_grad(loss, (0, 1), has_aux=True)
on_one_device = together(GRADIENTS)


def on(mesh, *example, **options):
    return jax.jit(partial(GRADIENTS, mesh=mesh, **options))(*example)


def mesh_of(shape):
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def assert_same(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6 * float(np.max(np.abs(e))))


def test_alignment(example):
    """logp[t] = log softmax(W h[t−1]/τ)[tokens[t]], by a loop in float64."""
    hidden, unembedding, tokens, mask = example
    stats = jax.jit(partial(token_logps, temperature=0.7))(*example)
    assert isinstance(stats, TokenStats)
    expected = np.zeros((3, B, T))
    for b, t in np.argwhere(mask):
        if t > 0:
            x = np.float64(unembedding) @ np.float64(hidden[b, t - 1]) / 0.7
            pi = np.exp(x) / np.exp(x).sum()
            p = pi[tokens[b, t]]
            expected[:, b, t] = np.log(p), -(pi * np.log(pi)).sum(), 1 - 2 * p + (pi**2).sum()
    np.testing.assert_allclose(np.stack(stats), expected, rtol=1e-5, atol=1e-6)
    assert (expected[0] != 0).sum() == mask[:, 1:].sum()


def test_leading_axes_are_free(example):
    hidden, unembedding, tokens, mask = example
    inputs = (
        example,
        (hidden[1], unembedding, tokens[1], mask[1]),
        (hidden[:, None], unembedding, tokens[:, None], mask[:, None]),
    )
    whole, one, deep = jax.jit(lambda inputs: [token_logps(*x) for x in inputs])(inputs)
    for a, b, c in zip(whole, one, deep, strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-6)
        np.testing.assert_allclose(a, c[:, 0], rtol=1e-6)


def test_hidden_states_without_a_prediction_may_hold_anything(example):
    hidden, unembedding, tokens, mask = example
    idle = ~np.concatenate([mask[:, 1:], np.zeros((B, 1), bool)], axis=1)
    nan = np.float32("nan")
    poisoned = np.where(idle[..., None], nan, hidden), unembedding, np.where(mask, tokens, np.int32(-77)), mask
    found, expected = on_one_device(*poisoned), on_one_device(*example)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (2, 2, 2)])
def test_every_mesh_gives_the_same(example, shape, implementation):
    actual = on(mesh_of(shape), *example, implementation=implementation)
    assert_same(actual, on_one_device(*example))
    assert all(np.max(np.abs(g)) > 0.1 for g in actual[1])


@pytest.mark.parametrize(
    "shape", [(1, 1, 8), (2, 2, 2), pytest.param((1, 4, 2), marks=pytest.mark.slow), (2, 4, 1), (1, 1, 1)]
)
def test_an_unembedding_split_over_vocabulary_and_width(example, shape):
    """The unembedding is padded so that the mesh divides its rows, as in a model."""
    hidden, unembedding, tokens, mask = example
    hidden, table = (np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)]) for x in (hidden, unembedding))
    padded = np.pad(table, ((0, 16 - V), (0, 0)), constant_values=9.0)
    there = on(mesh_of(shape), hidden, padded, tokens, mask, split=P("tensor", "fsdp"), vocab_size=V)
    value, (dh, dw) = there
    np.testing.assert_array_equal(dw[V:], 0)
    assert_same((value, (dh, dw[:V])), on_one_device(hidden, table, tokens, mask))


def test_mutants_fail(example, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(logprobs, "delayed", lambda x: x)
        with pytest.raises(AssertionError):
            test_alignment(example)
    split = jax.shard_map

    def unsummed(function, **options):
        return split(lambda h, y, w, t: function(h, y, jax.lax.stop_gradient(w), t), **options)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "shard_map", unsummed)
        with pytest.raises(AssertionError):
            test_every_mesh_gives_the_same(example, (2, 2, 2), "chunked")


def test_errors_name_the_argument(example):
    hidden, unembedding, tokens, mask = example
    for inputs, error, words in (
        ((hidden[:, 1:], unembedding, tokens, mask), ValueError, r"hidden has shape \(3, 6, 5\).*\(3, 7\)"),
        ((hidden, unembedding.T, tokens, mask), ValueError, r"unembedding has shape \(5, 11\).*D = 5"),
        ((hidden, unembedding, tokens, mask[:, 1:]), ValueError, r"mask has shape \(3, 6\).*\(3, 7\)"),
        ((hidden, unembedding, tokens, mask.astype(jnp.int32)), TypeError, "mask has dtype int32.*bool"),
        ((hidden, unembedding, hidden[..., 0], mask), TypeError, "tokens has dtype float32"),
    ):
        with pytest.raises(error, match=words):
            token_logps(*inputs)
    with pytest.raises(ValueError, match="implementation = 'fast'"):
        token_logps(*example, implementation="fast")
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"split = .*'model'.*axes \('tensor',\)"):
        token_logps(*example, mesh=mesh, split=P("model"))


def reference_model(seed=5, width=4):
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=s).astype(np.float32) for s in ((B, T, width), (V, width)))


def test_the_exact_kl_is_aligned_as_the_log_probabilities(example):
    """KL[t] from hidden[t−1] of both models, by a loop in float64; values and gradients on a mesh are equal."""
    hidden, unembedding, _, mask = example
    theirs = reference_model()
    expected = np.zeros((B, T))
    for b, t in np.argwhere(mask):
        if t > 0:
            x, z = (np.float64(w) @ np.float64(h[b, t - 1]) / 0.7 for h, w in ((hidden, unembedding), theirs))
            pi, rho = np.exp(x) / np.exp(x).sum(), np.exp(z) / np.exp(z).sum()
            expected[b, t] = (pi * np.log(pi / rho)).sum()

    def run(mesh):
        def of(hidden, unembedding):
            kl = token_kls(hidden, unembedding, *theirs, mask, temperature=0.7, mesh=mesh)
            return jnp.sum(jnp.cos(jnp.arange(T, dtype=jnp.float32))[None] * kl), kl

        return jax.jit(jax.grad(of, (0, 1), has_aux=True))(hidden, unembedding)

    (alone, kl), (spread, there) = run(None), run(mesh_of((2, 2, 2)))
    np.testing.assert_allclose(kl, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(there, kl, rtol=1e-6, atol=1e-6)
    for a, b in zip(alone, spread, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
        assert jnp.max(jnp.abs(a)) > 0.1


def test_a_few_tokens_beside_the_sampled_one(example):
    *_, mask = example
    ids = np.random.default_rng(1).integers(0, V, (B, T, 3)).astype(np.int32)

    @jax.jit
    def run(hidden, unembedding, tokens, mask):
        logp = token_logps(hidden, unembedding, tokens, mask, temperature=0.7).logp
        dense = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, unembedding) / 0.7, axis=-1)
        return logps_at(hidden, unembedding, ids, tokens, logp, temperature=0.7), dense

    few, dense = map(np.asarray, run(*example))
    for b, t in np.argwhere(mask):
        if t > 0:
            np.testing.assert_allclose(few[b, t], dense[b, t - 1][ids[b, t]], rtol=1e-5, atol=1e-5)


def test_errors_of_the_others_name_them_and_the_argument(example):
    hidden, unembedding, tokens, mask = example
    theirs = reference_model()
    with pytest.raises(ValueError, match=r"token_kls: ref_hidden has shape \(2, 7, 4\).*\(3, 7\)"):
        token_kls(hidden, unembedding, theirs[0][1:], theirs[1], mask)
    with pytest.raises(ValueError, match=r"token_kls: ref_unembedding has shape \(4, 11\).*D = 4, as in ref_hidden"):
        token_kls(hidden, unembedding, theirs[0], theirs[1].T, mask)
    with pytest.raises(ValueError, match=r"logps_at: unembedding has shape \(5, 11\)"):
        logps_at(hidden, unembedding.T, tokens[..., None], tokens, mask.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"ids has shape \(2, 7\): expected \(3, 7\), as tokens"):
        logps_at(hidden, unembedding, tokens[1:, :, None], tokens, mask.astype(jnp.float32))


@pytest.fixture(name="bans", scope="module")
def bans_fixture(example):
    tokens = example[2]
    counts = np.bincount(tokens.ravel(), minlength=V)
    bias = np.linspace(-1, 1, V, dtype=np.float32)
    bias[np.argsort(counts)[:3]] = -np.inf
    return bias


def dense_log_pi(hidden, unembedding, bias, cap=None, tau=0.7):
    """log π of each hidden state in float64; −∞ for banned tokens."""
    z = np.float64(hidden) @ np.float64(unembedding).T + bias
    x = np.where(np.isinf(bias), -np.inf, (z if cap is None else cap * np.tanh(z / cap)) / tau)
    top = x.max(axis=-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("shape", [None, (2, 2, 2), (1, 1, 8)])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_a_bias_of_minus_infinity_bans_tokens(example, bans, shape, cap):
    hidden, unembedding, tokens, mask = example
    hidden, table = (np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)]) for x in (hidden, unembedding))
    table, bias = np.pad(table, ((0, 16 - V), (0, 0))), np.pad(bans, (0, 16 - V))
    where = {} if shape is None else {"mesh": mesh_of(shape), "split": P("tensor", "fsdp")}

    def run(hidden, table, bias):
        total, stats = loss(
            hidden, table, tokens, mask & (bans[tokens] > -1e9), bias=bias, softcap=cap, vocab_size=V, **where
        )
        return total, stats

    gradients, stats = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(hidden, table, bias)
    log_pi = dense_log_pi(hidden, table[:V], bans, cap)
    pi = np.exp(log_pi)
    for b, t in np.argwhere(mask):
        if t > 0 and bans[tokens[b, t]] > -1e9:
            own, p = log_pi[b, t - 1], pi[b, t - 1]
            np.testing.assert_allclose(stats.logp[b, t], own[tokens[b, t]], rtol=1e-5)
            np.testing.assert_allclose(stats.entropy[b, t], -np.sum(p[p > 0] * own[p > 0]), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[2][:V][np.isinf(bans)], 0)
    assert all(np.max(np.abs(g)) > 0.1 for g in gradients)


def test_the_bias_of_both_models_or_of_each(example, bans):
    hidden, unembedding, _, mask = example
    theirs = reference_model()
    other = np.where(np.isinf(bans), np.float32(0), -bans)
    for given, biases, caps in (
        ({"bias": bans}, (bans, bans), (None, None)),
        ({"bias": (bans, other), "softcap": (1.5, None)}, (bans, other), (1.5, None)),
        ({"bias": (bans, None), "softcap": 2.0}, (bans, np.zeros(V)), (2.0, 2.0)),
    ):
        log_pi, log_rho = (
            dense_log_pi(h, w, bias, cap)[:, :-1]
            for (h, w), bias, cap in zip(((hidden, unembedding), theirs), biases, caps, strict=True)
        )
        log_pi, log_rho = log_pi[..., np.isfinite(bans)], log_rho[..., np.isfinite(bans)]
        expected = np.pad(np.sum(np.exp(log_pi) * (log_pi - log_rho), axis=-1), ((0, 0), (1, 0)))
        for mesh in (None, mesh_of((2, 2, 2))):
            kl = jax.jit(partial(token_kls, temperature=0.7, mesh=mesh, **given))(hidden, unembedding, *theirs, mask)
            np.testing.assert_allclose(kl, np.where(mask, expected, 0), rtol=1e-5, atol=1e-6)
    assert expected.max() > 0.1


@pytest.mark.parametrize("cap", [None, 1.5])
def test_a_few_tokens_with_banned_ones_among_them(example, bans, cap):
    hidden, unembedding, tokens, mask = example
    mask = mask & (bans[tokens] > -1e9)
    ids = np.broadcast_to(np.arange(V, dtype=np.int32), (B, T, V))

    def run(hidden, unembedding, bias):
        given = {"temperature": 0.7, "bias": bias, "softcap": cap}
        logp = token_logps(hidden, unembedding, tokens, mask, **given).logp
        few = logps_at(hidden, unembedding, ids, tokens, logp, **given)
        return jnp.sum(jnp.where(mask[..., None], jnp.exp(few) * jnp.cos(ids.astype(few.dtype)), 0)), few

    gradients, few = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True))(hidden, unembedding, bans)
    log_pi = dense_log_pi(hidden, unembedding, bans, cap)
    for b, t in np.argwhere(mask):
        if t > 0:
            np.testing.assert_allclose(few[b, t], log_pi[b, t - 1], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)
    np.testing.assert_array_equal(gradients[2][np.isinf(bans)], 0)
    assert all(np.max(np.abs(g)) > 0.05 for g in gradients)


def test_logps_at_for_nan_and_for_a_banned_sampled_token(example, bans):
    """A NaN logp gives NaN, also for a banned token; a banned sampled token gives −∞ for all tokens."""
    hidden, unembedding, tokens, _ = example
    banned = np.int32(np.flatnonzero(np.isinf(bans))[0])
    ids, own = np.full((B, T, 2), banned), np.full((B, T), banned)
    ids[..., 1] = np.flatnonzero(np.isfinite(bans))[0]
    for logp, y, right in ((np.nan, tokens, np.nan), (-np.inf, own, -np.inf)):
        few = logps_at(hidden, unembedding, ids, y, np.full((B, T), np.float32(logp)), bias=bans)
        np.testing.assert_array_equal(few, np.float32(right) + np.zeros_like(few))
    assert logprobs.BANNED == statistics.BANNED


@pytest.mark.parametrize("function", [token_logps, logps_at])
def test_the_bias_has_one_number_per_token(example, function):
    hidden, unembedding, tokens, mask = example
    rest = (tokens, mask) if function is token_logps else (tokens[..., None], tokens, hidden[..., 0])
    with pytest.raises(ValueError, match=r"bias.*\(10,\)"):
        function(hidden, unembedding, *rest, bias=np.zeros(V - 1, np.float32))
