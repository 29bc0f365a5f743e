import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models import Decoder
from tests.models.equations import hidden_states
from tests.models.small import CONFIG, VARIANTS, hidden_of, make, mesh_of, packed_rows, some_tokens

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@pytest.mark.parametrize("name", VARIANTS)
def test_every_packed_sequence_has_the_hidden_states_of_its_equations(name):
    model, params = make(VARIANTS[name])
    tokens, segment_ids = packed_rows()
    hidden = np.asarray(hidden_of(model, params, tokens, segment_ids))
    for b in range(tokens.shape[0]):
        for segment in set(segment_ids[b]) - {0}:
            where = segment_ids[b] == segment
            expected = hidden_states(model.config, params, tokens[b][where])
            np.testing.assert_allclose(hidden[b][where], expected, rtol=2e-4, atol=2e-5)


def test_float64_parameters_and_dtype_compute_in_float64():
    with enable_x64(True):
        model, params = make(dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64"))
        params = jax.tree.map(np.float64, params)
        tokens = np.int32([[3, 5, 9, 2, 4]])
        hidden = hidden_of(model, params, tokens, np.ones_like(tokens))
        np.testing.assert_allclose(hidden[0], hidden_states(model.config, params, tokens[0]), rtol=1e-11)


def test_the_future_changes_nothing():
    model, params = make()
    tokens = some_tokens((1, 10))
    other = np.where(np.arange(10) == 6, (tokens + 1) % 11, tokens)
    before, after = (np.asarray(hidden_of(model, params, x, np.ones_like(x))[0]) for x in (tokens, other))
    np.testing.assert_array_equal(before[:6], after[:6])
    assert (np.abs(before[6:] - after[6:]).max(axis=-1) > 1e-3).all()


@pytest.mark.parametrize("name", ["plain", "remat", "gemma", "experts"])
def test_packing_changes_neither_values_nor_gradients(name):
    model, params = make(VARIANTS[name])
    tokens, segment_ids = packed_rows()
    pull = np.float32(np.random.default_rng(5).normal(size=(*tokens.shape, CONFIG.width)))

    @jax.jit
    def run(params, tokens, ids, pull):
        def total(params):
            return jnp.sum(jnp.where(ids[..., None] != 0, model.hidden(params, tokens, ids) * pull, 0))

        return jax.value_and_grad(total)(params)

    alone = [(b, segment_ids[b] == s) for b in range(2) for s in range(1, 4) if (segment_ids[b] == s).any()]
    rows = np.array([b for b, _ in alone])
    separate = tokens[rows], np.int32([ids for _, ids in alone]), pull[rows]
    packed = [np.pad(x, [(0, rows.size - 2)] + [(0, 0)] * (x.ndim - 1)) for x in (tokens, segment_ids, pull)]
    (value, gradient), (expected, wanted) = (run(params, *inputs) for inputs in (packed, separate))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    found = dict(jax.tree.leaves_with_path(gradient))
    for path, leaf in jax.tree.leaves_with_path(wanted):
        assert np.abs(leaf).max() > 1e-3 or "unembedding" in str(path)  # a zero gradient would not pass
        np.testing.assert_allclose(found[path], leaf, rtol=1e-4, atol=1e-5 * float(np.abs(leaf).max() + 1e-3))


@pytest.mark.parametrize("name", ["plain", "gemma", "experts"])
def test_padding_changes_nothing_whatever_it_holds(name):
    model, params = make(VARIANTS[name])
    tokens = np.int32([[5, 3, 8, 2, 7, 6]])
    hidden = hidden_of(model, params, tokens, np.ones_like(tokens))
    for left, right, filler in ((1, 0, 0), (3, 2, 7), (0, 5, 10)):
        pad = ((0, 0), (left, right))
        padded, ids = np.pad(tokens, pad, constant_values=filler), np.pad(np.ones_like(tokens), pad)
        again = np.asarray(hidden_of(model, params, padded, ids))
        np.testing.assert_allclose(again[:, left : left + 6], hidden, rtol=1e-5, atol=1e-5)
        assert np.isfinite(again).all()


def test_the_unembedding_has_the_rows_of_the_vocabulary():
    for name in ("plain", "tied"):
        model, params = make(VARIANTS[name])
        table = params["embedding" if name == "tied" else "unembedding"]
        assert table.shape == (128, 16)
        np.testing.assert_array_equal(model.unembedding(params), table[:11])
    assert "unembedding" not in make(VARIANTS["tied"])[1]


def test_bfloat16_computes_in_bfloat16_from_float32_masters():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    model, params = make(config)
    tokens, segment_ids = packed_rows()
    exact = hidden_of(Decoder(CONFIG), params, tokens, segment_ids)

    @jax.jit
    def run(params):
        gradient = jax.grad(lambda p: model.hidden(p, tokens, segment_ids).astype(jnp.float32).mean())(params)
        return model.hidden(params, tokens, segment_ids), model.unembedding(params), gradient

    low, unembedding, gradient = run(params)
    assert low.dtype == unembedding.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((params, gradient)))
    error = np.where(segment_ids[..., None] != 0, np.float32(low) - exact, 0)
    assert 1e-4 < np.sqrt(np.mean(error**2)) < 0.05
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_parameters_are_created_in_their_dtype():
    model = Decoder(dataclasses.replace(VARIANTS["gemma"], param_dtype="bfloat16"))
    wide = jax.jit(Decoder(VARIANTS["gemma"]).initialize)(jax.random.key(0))
    params = jax.jit(model.initialize)(jax.random.key(0))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16), strict=True), params, wide)
    abstract = model.abstract_params(mesh_of((1, 1, 1)))
    assert {x.dtype for x in jax.tree.leaves(abstract)} == {jnp.dtype("bfloat16")}
    tokens, segment_ids = packed_rows()
    assert jax.eval_shape(lambda p: model.hidden(p, tokens, segment_ids), params).dtype == jnp.float32


@pytest.mark.parametrize("name", ["gemma", "experts"])
def test_every_norm_starts_as_the_identity_on_normalized_features(name):
    model = Decoder(VARIANTS[name])
    params = jax.jit(model.initialize)(jax.random.key(0))
    scales = [x for path, x in jax.tree.leaves_with_path(params) if "scale" in str(path)]
    assert len(scales) == 1 + model.config.layers * (6 if name == "gemma" else 4)
    assert {float(x) for scale in scales for x in scale} == {1.0 - model.config.norm_shift}


def test_the_constants_of_a_program_have_the_length_of_its_rows():
    tokens = np.zeros((1, 12), np.int32)
    sizes = []
    for max_length in (24, 131_072):
        model, params = make(dataclasses.replace(VARIANTS["gemma"], max_length=max_length))
        program = jax.make_jaxpr(functools.partial(model.prefill, cache_length=20))(params, tokens, tokens + 1)
        sizes.append(sum(np.size(x) for x in program.consts))
    assert sizes == [2 * 2 * 12 * 2] * 2  # cos and sin, of global and local layers, for 12 positions and 2 frequencies


def test_remat_keeps_no_activation_of_the_blocks():
    tokens, segment_ids = packed_rows()

    def residuals(config):
        model, params = make(config)
        pull = jax.eval_shape(lambda p: jax.vjp(lambda p: model.hidden(p, tokens, segment_ids), p)[1], params)
        return sum(x.size for x in jax.tree.leaves(pull))

    assert residuals(VARIANTS["remat"]) < 0.6 * residuals(CONFIG)


def _zeros(*shape, dtype=np.int32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((_zeros(2, 25),) * 2, ValueError, "25 columns: expected at most max_length = 24"),
        ((_zeros(5),) * 2, ValueError, r"tokens has shape \(5,\): expected \[B, T\]"),
        ((_zeros(2, 5, dtype=np.float32), _zeros(2, 5)), TypeError, "tokens has dtype float32: expected an int"),
        ((_zeros(2, 5), _zeros(2, 5, dtype=bool)), TypeError, "segment_ids has dtype bool"),
        ((_zeros(2, 5), _zeros(2, 4)), ValueError, r"segment_ids has shape \(2, 4\)"),
    ],
)
def test_tokens_that_do_not_fit_are_named(arguments, error, message):
    model, params = make()
    with pytest.raises(error, match=message):
        model.hidden(params, *arguments)


def test_parameters_of_another_config_are_named():
    model, _ = make()
    tokens = _zeros(1, 3)
    _, other = make(dataclasses.replace(CONFIG, mlp=20))
    with pytest.raises(ValueError, match=r"\['mlp'\]\['down'\] has shape \(20, 16\): expected \(24, 16\)"):
        model.hidden(other, tokens, tokens)
    _, tied = make(VARIANTS["tied"])
    with pytest.raises(ValueError, match=r"params\['unembedding'\] has shape absent"):
        model.hidden(tied, tokens, tokens)
