"""A rollout whose completions share the computation of their prompt gives the same optimizer steps."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rljax import algorithms, penalty
from rljax.models import Decoder
from rljax.training import RolloutConfig
from rljax.training.optimizer import init_state
from rljax.training.placement import to_devices
from rljax.training.step.accumulation import State
from rljax.training.step.policy import make_update, summarize
from rljax.training.step.scoring import SharedPrompt, make_prepare, shared_prompt
from tests.models.bigram import Bigram, BigramConfig
from tests.training.in_process import train
from tests.training.one_step import config_of, length, less, params_of, recorded, rollouts_of, scorer_of
from tests.training.subprocesses import metrics
from tests.training.tiny import config as tiny

pytestmark = pytest.mark.standard_promotion
TOKENS: list[int] = []
GROUPS: list[tuple[int, int, int]] = []


def exact_kl(stats, batch, *, kl):
    return 0.3 * penalty.exact_kl(kl, batch)


def config(algorithm, minibatches=2, microbatches=2, **more):
    base = config_of(algorithm, **more)
    parts = dataclasses.replace(base.rollout, minibatches=minibatches, microbatches=microbatches)
    return dataclasses.replace(base, rollout=parts)


class Counting(Decoder):
    """Counts the tokens of forward passes."""

    def _network(self, params):
        def run(tokens, *others):
            jax.debug.callback(lambda: TOKENS.append(tokens.size))
            return network(tokens, *others)

        network = super()._network(params)
        return run


def scorers(config, sizes, shared: bool):
    scorer = scorer_of(config, sizes)
    model = Counting(scorer.model.config, scorer.model.rules)
    layout = shared_prompt(config.rollout, model.rules.row_shards(scorer.mesh)) if shared else None
    return dataclasses.replace(scorer, model=model, shared=layout)


def with_equal_prompts(config):
    """The rollouts of `config` with one prompt per group; group 2 is masked, and the sampler's log π is rough."""
    rollouts = rollouts_of(config)
    tokens, mask = rollouts.tokens.copy(), rollouts.mask.copy()
    tokens[..., :4], mask[2] = tokens[:, :1, :4], False
    return dataclasses.replace(rollouts, tokens=tokens, mask=mask)


def counted(run):
    found, noted = recorded(run, TOKENS)
    return found, sum(noted)


@functools.cache
def two_steps(config, sizes, shared):
    """(metrics, parameters − first parameters, Prepared) of the rollout's 2 steps, tokens of `prepare` and updates."""
    scorer, optimizer, algorithm = scorers(config, sizes, shared), optax.sgd(0.3), config.algorithm
    params, reference = params_of(scorer), params_of(scorer, seed=1)
    start = jax.device_get(params)
    rollouts = to_devices(with_equal_prompts(config), scorer.mesh, P())
    (prepared, _), scored = counted(lambda: make_prepare(config, scorer)(params, reference, rollouts, (), algorithm))
    update, state = make_update(config, scorer, optimizer), State(params, init_state(optimizer, params))
    history, trained = [], 0
    for i in range(2):
        part = jax.tree.map(lambda x, i=i: x[i::2] if x.ndim else x, prepared)
        (state, sums), tokens = counted(lambda state=state, part=part: update(state, reference, part, algorithm))
        history.append(sums)
        trained += tokens
    moved = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), start)
    return jax.device_get((summarize(history), prepared)), moved, (scored, trained)


CONFIGS = {
    "dapo": config(algorithms.dapo()),
    "otb": config(algorithms.otb()),
    "ppo": config(algorithms.ppo()),
    "cppo": config(algorithms.cppo()),
    "kl": config(algorithms.grpo(), penalty=exact_kl),
}


def assert_same(ours, theirs):
    ((metrics, prepared), moved, _), ((expected, scored), wanted, _) = ours, theirs
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    for name in ("old_logp", "proxy", "values"):
        if (x := getattr(scored.rollouts, name)) is not None:
            found, mask = getattr(prepared.rollouts, name), scored.rollouts.mask
            np.testing.assert_allclose(found[mask], x[mask], rtol=2e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(prepared.advantages, scored.advantages, rtol=1e-4, atol=1e-5)
    assert length(wanted) > 1e-2
    assert length(less(moved, wanted)) < 2e-5 * length(wanted)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ("dapo", "otb"))) for name in CONFIGS
])  # fmt: skip
def test_sharing_changes_nothing(name):
    assert_same(two_steps(CONFIGS[name], (1, 1, 1), True), two_steps(CONFIGS[name], (1, 1, 1), False))


@pytest.mark.parametrize("name", [pytest.param("cppo", marks=pytest.mark.slow), "ppo"])
def test_sharing_changes_nothing_on_a_mesh(name):
    assert_same(two_steps(CONFIGS[name], (2, 2, 1), True), two_steps(CONFIGS[name], (1, 1, 1), False))


@pytest.mark.parametrize(("sizes", "unit"), [((1, 1, 1), 8), ((2, 2, 1), 2)], ids=str)
def test_prompts_are_computed_once(sizes, unit):
    """3 of 4 microbatches have tokens; each has 8 rows of 4 prompt and 8 completion tokens."""
    ppo = CONFIGS["ppo"]
    assert scorers(ppo, sizes, True).shared == SharedPrompt(4, unit)
    once = 3 * (8 // unit * 4 + 8 * 8)
    assert two_steps(ppo, sizes, True)[-1] == (once, once)
    assert two_steps(ppo, (1, 1, 1), False)[-1] == (3 * 8 * 12, 3 * 8 * 12)


def test_no_prompt_token_is_scored():
    scorer = scorers(CONFIGS["dapo"], (1, 1, 1), True)
    rows = jax.ShapeDtypeStruct((32, 12), np.int32)
    found = jax.eval_shape(scorer.hidden, params_of(scorer), rows, rows)
    assert found.shape == (32, 9, 32)


@pytest.mark.parametrize(("completions", "microbatches", "shards", "unit"), [
    (8, 1, 1, 8), (8, 2, 4, 8), (8, 8, 2, 4), (6, 8, 2, 3), (8, 64, 1, 1), (1, 1, 1, 1),
])  # fmt: skip
def test_units_fit_into_microbatches_and_shards(completions, microbatches, shards, unit):
    rollout = RolloutConfig(prompts=8, completions=completions, prompt_length=5, microbatches=microbatches)
    assert shared_prompt(rollout, shards) == (None if unit == 1 else SharedPrompt(5, unit))


class SharingBigram(Bigram):
    def group_hidden(self, params, tokens, segment_ids, *, prompt_length, completions):
        GROUPS.append((len(tokens), prompt_length, completions))
        return self.hidden(params, tokens[:, prompt_length - 1 :], segment_ids)


class SharingBigramConfig(BigramConfig):
    def build(self, **settings):
        model = super().build(**settings)
        return SharingBigram(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_stage_two_shares_prompts(tmp_path, data):
    """Rollouts of 8 prompts with 4 completions, in 2 minibatches: 16 rows."""
    GROUPS.clear()
    task = dataclasses.replace(tiny.task, data_dir=data)
    train(dataclasses.replace(tiny, run=tmp_path / "run", task=task, model=SharingBigramConfig(), steps=1,
                              algorithm=algorithms.ppo(), checkpoint_every=0))  # fmt: skip
    assert set(GROUPS) == {(16, tiny.rollout.prompt_length, 4)}
    assert metrics(tmp_path / "run", "rl")[0]["mismatch"] < 1e-5


def test_a_model_without_the_ability_computes_whole_rows():
    model = BigramConfig().build(vocab_size=19, value_head=False, rules=CONFIGS["dapo"].sharding)
    scorer = dataclasses.replace(scorers(CONFIGS["dapo"], (1, 1, 1), True), model=model)
    rows = jax.ShapeDtypeStruct((32, 12), np.int32)
    found = jax.eval_shape(scorer.hidden, model.initialize(jax.random.key(0)), rows, rows)
    assert found.shape == (32, 12, 16)
