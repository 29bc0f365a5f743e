import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax.models import Decoder
from rljax.rollout import SamplingConfig, generate
from tests.models.small import CONFIG, make, mesh_of, some_tokens

SAMPLING = SamplingConfig(max_new_tokens=6)
PROMPTS, COMPLETIONS, COLUMNS = 3, 4, 5

program = jax.jit(generate, static_argnames=("model", "config", "stop_ids", "completions", "banned"))


class _Noted(Decoder):
    def prefill(self, params, tokens, segment_ids, cache_length):
        ROWS.append(len(tokens))
        return super().prefill(params, tokens, segment_ids, cache_length)


ROWS: list[int] = []


def _prompts():
    """Prompts of different lengths, so that rows of the cache differ in their valid slots and positions."""
    ids = (np.arange(COLUMNS) >= COLUMNS - np.array([2, 5, 3])[:, None]).astype(np.int32)
    return some_tokens((PROMPTS, COLUMNS)) * ids, ids


def _repeated():
    return [np.repeat(x, COMPLETIONS, axis=0) for x in _prompts()]


@functools.cache
def _samples(sizes, completions):
    mesh, (_, params), key = mesh_of(sizes), make(), jax.random.key(11)
    model = _Noted(CONFIG)
    params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, model.abstract_params(mesh)))
    prompts, spec = (_prompts(), P()) if completions > 1 else (_repeated(), P(model.rules.rows))
    prompts = jax.device_put(prompts, NamedSharding(mesh, spec))
    return program(model, params, *prompts, key, SAMPLING, stop_ids=(1,), completions=completions)


@pytest.mark.parametrize("sizes", [pytest.param((1, 1, 1), marks=pytest.mark.slow), (2, 2, 1)], ids=str)
def test_a_group_shares_the_prefill_of_its_prompt(sizes):
    expected = jax.tree.map(np.asarray, _samples((1, 1, 1), 1))
    ROWS.clear()
    shared = _samples(sizes, COMPLETIONS)
    assert ROWS == [PROMPTS]
    assert shared.tokens.addressable_shards[0].data.shape[0] == PROMPTS * COMPLETIONS // np.prod(sizes)
    for name in ("tokens", "segment_ids", "mask", "finished"):
        np.testing.assert_array_equal(getattr(shared, name), getattr(expected, name), err_msg=name)
    for name in ("old_logp", "sampled_logp"):
        np.testing.assert_allclose(getattr(shared, name), getattr(expected, name), atol=1e-5, err_msg=name)
    groups = np.asarray(shared.tokens).reshape(PROMPTS, COMPLETIONS, -1)
    assert all(len({tuple(row) for row in group.tolist()}) > 1 for group in groups)


def test_a_number_of_completions_below_1_is_refused():
    model, params = make()
    with pytest.raises(ValueError, match="completions = 0: expected 1 or more completions per prompt"):
        generate(model, params, *_prompts(), jax.random.key(0), SAMPLING, stop_ids=(1,), completions=0)


def test_rows_and_budgets_belong_to_completions():
    model, params = make()
    budget = np.arange(PROMPTS * COMPLETIONS, dtype=np.int32) % 7
    shared = program(model, params, *_prompts(), jax.random.key(11), SAMPLING, stop_ids=(), completions=COMPLETIONS,
                     budget=budget)  # fmt: skip
    assert shared.mask.sum(axis=1).tolist() == budget.tolist()
    with pytest.raises(ValueError, match=r"budget has shape \(3,\) and dtype int32: expected \(12,\) and an integer"):
        program(model, params, *_prompts(), jax.random.key(11), SAMPLING, stop_ids=(), completions=COMPLETIONS,
                budget=budget[:3])  # fmt: skip
