"""Advantages against the papers' formulas at float64, what they must never do, and what each refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage
from rljax.objective import required_fields
from tests import papers

TOKEN_BASELINES = ["optimal_token_baseline", "leave_one_out_token_baseline"]


@partial(jax.jit, static_argnums=0)  # one program a case: eager mode compiles every operation
def apply(name, rewards, mask, proxy):
    f = getattr(advantage, name)
    named = {"proxy": jnp.asarray(proxy)} if required_fields(f) else {}
    return f(jnp.asarray(rewards), jnp.asarray(mask), **named)


def expected(name, rewards, mask, proxy):
    f = getattr(papers, name)
    groups = zip(rewards, mask, *([proxy] if name in TOKEN_BASELINES else []), strict=True)
    return np.stack([f(*group) for group in groups])


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", advantage.__all__)
def test_values_are_the_papers(name, dense):
    rewards, mask, proxy = papers.random_rollouts(0, dense=dense)
    with jax.enable_x64(True):
        A = apply(name, rewards, mask, proxy)
        assert A.dtype == jnp.float64
        assert papers.agree(A, expected(name, rewards, mask, proxy))
        shifted = apply(name, rewards, np.roll(mask, 1, axis=-1), proxy)
        assert not papers.agree(shifted, expected(name, rewards, mask, proxy), 1e-3)


@pytest.mark.parametrize("name", TOKEN_BASELINES)
def test_rewards_and_proxies_at_masked_tokens_are_not_read(name):
    rewards, mask, proxy = papers.random_rollouts(3, dense=True)
    spoilt = apply(name, np.where(mask, rewards, np.nan), mask, np.where(mask, proxy, np.nan))
    np.testing.assert_array_equal(spoilt, apply(name, rewards, mask, proxy))


@pytest.mark.parametrize("name", TOKEN_BASELINES)
def test_being_longest_pays_nothing(name):
    """R ≡ 1, lengths 5 and 3: the published code gives [0, 0, 0, 1, 1] to the longer."""
    mask = np.arange(5) < np.array([[5], [3]])
    rewards, proxy = np.ones(2), np.ones((2, 5))
    np.testing.assert_array_equal(papers.reference_token_baseline(rewards, mask, proxy)[0], [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(apply(name, rewards[None], mask[None], proxy[None]), np.zeros((1, 2, 5)))


def test_past_all_others_the_baseline_is_theirs_at_their_last_tokens():
    mask = np.arange(4)[None] < np.array([[4], [2], [1]])
    proxy = np.array([[[1.0] * 4, [1.0, 0.5, 9.0, 9.0], [0.5, 9.0, 9.0, 9.0]]])
    for name in TOKEN_BASELINES:
        A = apply(name, np.array([[1.0, 0.5, 0.0]]), mask[None], proxy)
        np.testing.assert_allclose(A[0, 0, 2:], 1 - (0.5 * 1.5 + 0.0 * 0.5) / 2.0, rtol=1e-6)


def test_own_sample_form_is_the_leave_one_out_form_shortened_by_its_own_share():
    """A = (1 − W_i / ΣW) · A_loo: a shorter step, which is its bias."""
    rewards, mask, proxy = np.array([[1.0, 0.0, 0.3]]), np.ones((1, 3, 4), bool), np.ones((1, 3, 4))
    own, left = (apply(name, rewards, mask, proxy) for name in TOKEN_BASELINES)
    np.testing.assert_allclose(own, left * (2 / 3), rtol=1e-6)


def test_equal_energies_give_the_mean_baselines():
    rewards, _, _ = papers.random_rollouts(4)
    mask, proxy = np.ones((4, 5, 8), bool), np.ones((4, 5, 8))
    for token, plain in zip(TOKEN_BASELINES, ("mean_baseline", "leave_one_out"), strict=True):
        np.testing.assert_allclose(apply(token, rewards, mask, proxy), apply(plain, rewards, mask, proxy), atol=1e-6)


def test_tiny_energies_of_the_others_survive_a_large_one_of_ones_own():
    """Sums over the others are made of the others: a total less one's own would leave rounding."""
    proxy = np.array([[[2.0], [1e-9], [3e-9]]])
    A = apply("leave_one_out_token_baseline", np.array([[0.0, 1.0, 2.0]]), np.ones((1, 3, 1), bool), proxy)
    np.testing.assert_allclose(A[0, 0, 0], -1.75, rtol=1e-6)


def test_worked_group():
    rewards, mask = np.array([[1.0, 0.0, 0.0]]), np.arange(3) < np.array([[[1], [2], [3]]])
    at_first = {"group_relative": 2 / 3 / (np.sqrt(1 / 3) + 1e-6), "mean_baseline": 2 / 3, "leave_one_out": 1.0,
                "length_weighted": 5 / 6}  # fmt: skip
    for name, value in at_first.items():
        np.testing.assert_allclose(apply(name, rewards, mask, None)[0, 0], [value, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("name", advantage.__all__)
def test_integer_rewards_are_numbers_too(name):
    rewards, mask = np.array([[1, 0, 1]], np.int32), np.ones((1, 3, 2), bool)
    A = apply(name, rewards, mask, np.ones((1, 3, 2), np.float32))
    assert A.dtype == jnp.float32
    assert A[0, 0, 0] > 0 > A[0, 1, 0]


@pytest.mark.parametrize("name", advantage.__all__)
def test_arguments_that_do_not_fit(name):
    rewards, mask, proxy = papers.random_rollouts(0)
    with pytest.raises(TypeError, match="mask has dtype float32: expected bool"):
        apply(name, rewards, mask.astype(np.float32), proxy)
    with pytest.raises(ValueError, match=r"rewards has shape \(4, 4\): expected \(4, 5\)"):
        apply(name, rewards[:, :4], mask, proxy)
    with pytest.raises(ValueError, match=r"rewards has shape \(4,\): expected \[P, G\] or \[P, G, T\]"):
        apply(name, rewards[:, 0], mask, proxy)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\): expected \[P, G, T\]"):
        apply(name, rewards, mask[..., 0], proxy)
    if name in TOKEN_BASELINES:
        with pytest.raises(ValueError, match=r"proxy has shape \(4, 5\)"):
            apply(name, rewards, mask, proxy[..., 0])
