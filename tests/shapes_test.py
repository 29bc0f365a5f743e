"""Any shape, mask and packing, drawn by Hypothesis and compared with papers.py."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rljax import Batch, policy_loss, ratio
from tests import advantage_test, aggregation_test, papers
from tests.examples import bound
from tests.laws_test import ADVANTAGES, AGGREGATIONS, RATIOS

few = partial(settings, deadline=None, derandomize=True, database=None)
POOLS = {
    "sequence_mean": (ratio.sequence_mean, papers.sequence_mean),
    "cumulative": (ratio.local_gradient(ratio.cumulative), papers.local_gradient(papers.cumulative)),
    "prefix_mean": (ratio.prefix_mean, papers.prefix_mean),
    "prefix_min": (ratio.prefix_min, papers.prefix_min),
    "power_mean": (bound(ratio, "power_mean"), papers.power_mean(1.5)),
    "position_clip": (bound(ratio, "position_clip"), papers.position_clip(0.1, 0.2, 0.3)),
}
B, T = 3, 6


@st.composite
def rows(draw):
    """Log-ratios, advantages of any sign, and ids of sequences with holes; rows may be empty."""
    steps = draw(st.lists(st.sampled_from(["same", "next", "hole"]), min_size=B * T, max_size=B * T))
    ids, last = np.zeros((B, T), np.int32), 0
    for place, step in zip(np.ndindex(B, T), steps, strict=True):
        last = 1 if place[1] == 0 else last + (step == "next")
        ids[place] = 0 if step == "hole" else last
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return rng.normal(size=(B, T)) * 0.3, rng.normal(size=(B, T)), ids


@jax.jit
def pools(l, A, ids):
    batch = Batch(mask=ids > 0, old_logp=jnp.zeros_like(l), advantages=A, weights=jnp.ones_like(l), segment_ids=ids)
    return {name: jax.value_and_grad(policy_loss)(l, batch, f) for name, (f, _) in POOLS.items()}


@few(max_examples=25)
@given(case=rows())
def test_pools_of_any_packing_are_the_papers(case):
    l, A, ids = case
    with jax.enable_x64(True):
        ours = pools(*case)
    for name, (_, paper) in POOLS.items():
        assert papers.agree(ours[name][0], papers.policy_loss(paper, l, A, np.ones_like(l), ids)), name
        assert papers.agree(ours[name][1], papers.policy_gradient(paper, l, A, np.ones_like(l), ids)), name


def masks(*shape):
    return st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda bits: np.array(bits, bool).reshape(shape)
    )


@few(max_examples=15)
@given(mask=masks(2, 3, 4), outcome=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=6, max_size=6))
def test_advantages_of_any_mask_are_the_papers(mask, outcome):
    rewards = np.array(outcome).reshape(2, 3)
    with jax.enable_x64(True):
        found = advantage_test.every(rewards, mask)
    for name, A in found.items():
        assert papers.agree(A, advantage_test.expected(name, rewards, mask)), name


@few(max_examples=25)
@given(mask=masks(2, 3, 4), sign=st.lists(st.integers(-1, 1), min_size=6, max_size=6))
def test_aggregations_of_any_mask_are_the_papers(mask, sign):
    sign = np.array(sign, np.float64).reshape(2, 3)
    with jax.enable_x64(True):
        weights = aggregation_test.every(mask, sign)
    for name, (_, paper) in aggregation_test.CASES.items():
        assert papers.agree(weights[name], paper(mask, sign)), name


def traced(f, *arguments):
    return jax.eval_shape(f, *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments))


@few(max_examples=8)
@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), packed=st.booleans())
def test_ratios_keep_any_shape(shape, packed):
    shape = tuple(shape)
    for f in RATIOS.values():
        fields = {"divergence": jnp.zeros(shape)} if "divergence" in inspect.signature(f).parameters else {}
        fields |= {"old_logp": jnp.zeros(shape)} if "old_logp" in inspect.signature(f).parameters else {}
        out = traced(partial(f, **fields), (shape, jnp.bfloat16), (shape, jnp.float32),
                     (shape, jnp.int32 if packed else jnp.bool_))  # fmt: skip
        assert (out.shape, out.dtype) == (shape, jnp.float32)


@few(max_examples=8)
@given(P=st.integers(1, 3), G=st.integers(1, 4), T=st.integers(1, 6), dense=st.booleans())
def test_advantages_and_weights_are_of_the_masks_shape(P, G, T, dense):
    shape, mask = (P, G, T), np.ones((P, G, T), bool)
    rewards = np.zeros(shape if dense else shape[:2], np.float32)
    fields = jax.tree.map(jnp.asarray, papers.random_fields(0, rewards, mask))
    for f in ADVANTAGES.values():
        named = {k: v for k, v in fields.items() if k in inspect.signature(f).parameters and k != "importance"}
        assert traced(partial(f, **named), (rewards.shape, jnp.float32), (shape, jnp.bool_)).shape == shape
    for f in AGGREGATIONS.values():
        assert traced(f, (shape, jnp.bool_), (shape[:2], jnp.int32)).shape == shape


@pytest.mark.parametrize("name", POOLS)
def test_a_mutant_that_forgets_the_holes_is_noticed(name):
    l, A, ids = np.full((1, 3), 0.2), np.array([[1.0, 5.0, -2.0]]), np.array([[1, 0, 1]])
    whole = papers.policy_loss(POOLS[name][1], l, A, np.ones_like(l), np.ones_like(ids))
    assert not papers.agree(whole, papers.policy_loss(POOLS[name][1], l, A, np.ones_like(l), ids), 1e-2)
