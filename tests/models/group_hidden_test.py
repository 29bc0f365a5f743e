"""Hidden states of completions that share the computation of their prompt equal those of whole rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small import CONFIG, VARIANTS, make, mesh_of, some_tokens

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
G, L, T = 3, 7, 12
IDS = np.int32([[0, 0, 1, 1, 1, 1, 1], [0, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0, 1]])
"""Prompts with padding on the left; the second has two packed segments."""


def rows():
    """Rows [12, 12] of 4 prompts with 3 completions each, of 0 to 5 tokens."""
    prompts, completions = some_tokens((len(IDS), L)), some_tokens((len(IDS) * G, T - L), seed=8)
    lengths = np.random.default_rng(0).permutation(np.arange(len(completions)) % (T - L + 1))
    present = np.arange(T - L) < lengths[:, None]
    ids = np.repeat(IDS, G, axis=0)
    return (np.concatenate([np.repeat(prompts, G, axis=0), completions], axis=1),
            np.concatenate([ids, np.where(present, ids[:, -1:], 0)], axis=1))  # fmt: skip


def of_rows(model, params, tokens, segment_ids):
    return model.hidden(params, tokens, segment_ids)[:, L - 1 :]


def of_groups(model, params, tokens, segment_ids):
    return model.group_hidden(params, tokens, segment_ids, prompt_length=L, completions=G)


def value_and_gradient(hidden_of, model, params, inputs):
    """The hidden states [B, N, D], 0 on padding, and the gradient of a random sum of them."""
    pull = np.random.default_rng(5).normal(size=(len(IDS) * G, T - L + 1, CONFIG.width))

    @jax.jit
    def run(params, inputs):
        def total(params):
            found = jnp.where(inputs[1][:, L - 1 :, None] != 0, hidden_of(model, params, *inputs), 0)
            return jnp.sum(found * jnp.asarray(pull, found.dtype)), found

        gradient, found = jax.grad(total, has_aux=True)(params)
        return found, gradient

    return jax.device_get(run(params, inputs))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("plain", "remat", "gemma", "experts")))
    for name in VARIANTS
])  # fmt: skip
def test_a_shared_prompt_changes_nothing(name):
    with enable_x64(True):
        model, params = make(dataclasses.replace(VARIANTS[name], dtype="float64", param_dtype="float64"))
        params = jax.tree.map(np.float64, params)
        found, gradient = value_and_gradient(of_groups, model, params, rows())
        expected, wanted = value_and_gradient(of_rows, model, params, rows())
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)
    gradient = dict(jax.tree.leaves_with_path(gradient))
    for path, leaf in jax.tree.leaves_with_path(wanted):
        assert np.abs(leaf).max() > 1e-3 or "unembedding" in str(path)  # a zero gradient would not pass
        np.testing.assert_allclose(gradient[path], leaf, rtol=1e-8, atol=1e-9 * float(np.abs(leaf).max() + 1e-3))


@pytest.mark.parametrize("sizes", [pytest.param((2, 2, 1), marks=pytest.mark.slow), (1, 2, 2)], ids=str)
def test_a_shared_prompt_changes_nothing_on_a_mesh(sizes):
    model, params = make(VARIANTS["gemma"])
    expected, wanted = value_and_gradient(of_groups, model, params, rows())
    shardings = jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh_of(sizes)))
    found, gradient = value_and_gradient(of_groups, model, jax.device_put(params, shardings), rows())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    for leaf, ours in zip(jax.tree.leaves(wanted), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, leaf, rtol=1e-3, atol=1e-4 * float(np.abs(leaf).max() + 1e-3))


def test_only_the_first_prompt_of_a_group_is_read():
    model, params = make()
    tokens, ids = rows()
    others = tokens.copy()
    others[np.arange(len(tokens)) % G != 0, :L] = 3
    assert (others != tokens).any()
    found, expected = (jax.jit(of_groups, static_argnums=0)(model, params, x, ids) for x in (others, tokens))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("prompt_length", "completions", "message"), [
    (7, 5, "completions = 5: expected a divisor of the 12 rows of tokens"),
    (7, 0, "completions = 0"),
    (12, 3, "prompt_length = 12: expected 1 to 11 of the 12 columns of tokens"),
    (0, 3, "prompt_length = 0"),
])  # fmt: skip
def test_groups_must_fit_the_rows(prompt_length, completions, message):
    model, params = make()
    with pytest.raises(ValueError, match=message):
        model.group_hidden(params, *rows(), prompt_length=prompt_length, completions=completions)
