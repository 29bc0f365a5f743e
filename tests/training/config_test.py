import dataclasses

import optax
import pytest

from rljax import algorithms
from rljax.tasks import StringsTask
from rljax.training import (
    Config,
    CriticConfig,
    EvaluationConfig,
    LikelihoodConfig,
    MeshConfig,
    OptimizerConfig,
    RolloutConfig,
    ShardingRules,
)  # fmt: skip
from tests.training.tiny import config as tiny


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: OptimizerConfig(learning_rate=0.0), r"optimizer\.learning_rate = 0\.0: expected a positive"),
        (lambda: OptimizerConfig(learning_rate=float("nan")), r"optimizer\.learning_rate = nan"),
        (lambda: OptimizerConfig(warmup_steps=-1), r"optimizer\.warmup_steps = -1"),
        (lambda: OptimizerConfig(warmup_steps=5, decay_steps=5), r"optimizer\.decay_steps = 5: .*warmup_steps = 5"),
        (lambda: CriticConfig(coefficient=-1.0), r"critic\.coefficient = -1\.0: expected 0 or more"),
        (lambda: CriticConfig(limit=0.0), r"critic\.limit = 0\.0: expected a positive"),
        (lambda: OptimizerConfig(b1=1.0), r"optimizer\.b1 = 1\.0"),
        (lambda: OptimizerConfig(b2=-0.1), r"optimizer\.b2 = -0\.1"),
        (lambda: OptimizerConfig(weight_decay=-1.0), r"optimizer\.weight_decay = -1\.0"),
        (lambda: OptimizerConfig(clip_norm=0.0), r"optimizer\.clip_norm = 0\.0"),
        (lambda: LikelihoodConfig(microbatches=0), r"likelihood\.microbatches = 0"),
        (lambda: RolloutConfig(microbatches=0), r"rollout\.microbatches = 0"),
        (lambda: MeshConfig(data=0), r"mesh\.data = 0"),
        (lambda: MeshConfig(data=-1, fsdp=-1), r"at most one -1"),
        (lambda: ShardingRules(mlp="expert"), r"sharding\.mlp = 'expert': expected None or one of \('data', "),
        (lambda: ShardingRules(embed=("data", "fsdp")), r"sharding\.embed = \('data', 'fsdp'\): expected None or one"),
        (lambda: ShardingRules(rows="data"), r"sharding\.rows = 'data': expected a tuple of mesh axes among"),
        (lambda: LikelihoodConfig(steps=-1), r"likelihood\.steps = -1"),
        (lambda: LikelihoodConfig(rows=0), r"likelihood\.rows = 0"),
        (lambda: LikelihoodConfig(row_length=1), r"likelihood\.row_length = 1"),
        (lambda: LikelihoodConfig(rows=9, microbatches=2), r"likelihood\.rows = 9"),
        (lambda: RolloutConfig(prompts=0), r"rollout\.prompts = 0"),
        (lambda: RolloutConfig(train_groups=65), r"rollout\.train_groups = 65: expected 0 \(all\) to .* = 64"),
        (lambda: RolloutConfig(minibatches=3), r"rollout\.minibatches = 3: expected a divisor of 64"),
        (lambda: EvaluationConfig(every=-1), r"evaluation\.every = -1"),
        (lambda: EvaluationConfig(temperature=0.0), r"evaluation\.temperature = 0\.0"),
        (lambda: EvaluationConfig(samples=0), r"evaluation\.samples = 0"),
        (lambda: dataclasses.replace(tiny, seed=-1), r"seed = -1"),
        (lambda: dataclasses.replace(tiny, steps=-1), r"steps = -1"),
        (lambda: dataclasses.replace(tiny, checkpoint_every=-1), r"checkpoint_every = -1"),
        (lambda: dataclasses.replace(tiny, keep_every=-1), r"keep_every = -1"),
        (
            lambda: dataclasses.replace(tiny, checkpoint_every=0, keep_every=2),
            r"checkpoint_every = 0: .*keep_every",
        ),
        (
            lambda: dataclasses.replace(tiny, optimizer="lion"),
            r"optimizer = 'lion': expected an OptimizerConfig",
        ),
        (lambda: LikelihoodConfig(optimizer=optax.adamw), r"likelihood\.optimizer = .*adamw.*: expected an Optim"),
        (lambda: ShardingRules(embed="fdsp"), r"sharding\.embed = 'fdsp': expected None or one of .*'fsdp'"),
        (lambda: ShardingRules(rows=("rows",)), r"sharding\.rows = \('rows',\)"),
        (
            lambda: dataclasses.replace(tiny.rollout, microbatches=3),
            r"rollout\.microbatches = 3: expected a divisor of 16, the number of rows",
        ),
        (
            lambda: dataclasses.replace(tiny, rollout=dataclasses.replace(tiny.rollout, prompt_length=60)),
            r"prompt_length \+ rollout\.sampling\.max_new_tokens = 70: expected at most model\.max_length = 64",
        ),
        (
            lambda: dataclasses.replace(tiny, likelihood=LikelihoodConfig(steps=1, row_length=65)),
            r"likelihood\.row_length = 65: expected at most model\.max_length = 64",
        ),
    ],
)
def test_a_field_out_of_range_names_itself(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_groups_are_selected_by_signal_only_for_group_baselines():
    rollout = RolloutConfig(prompts=4, train_groups=2)
    for algorithm, needed in ((algorithms.remax(), "greedy_rewards"), (algorithms.ppo(), "values")):
        with pytest.raises(ValueError, match=rf"rollout.train_groups = 2: expected 0, since .*needs {needed}"):
            Config(task=StringsTask(), algorithm=algorithm, rollout=rollout)
    Config(task=StringsTask(), algorithm=algorithms.grpo(), rollout=rollout)


def test_a_divergence_needs_its_number_of_tokens():
    Config(task=StringsTask(), algorithm=algorithms.cppo())
    unsaid = dataclasses.replace(algorithms.cppo(), top_k=None)
    with pytest.raises(ValueError, match=r"algorithm\.top_k = None: expected the number of likeliest tokens"):
        Config(task=StringsTask(), algorithm=unsaid)


def difficult(rewards, mask, *, difficulty):
    return rewards


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": algorithms.grpo}, r"algorithm = grpo: expected a PolicyGradient, .*; call it, grpo\(…\)"),
        ({"algorithm": 3}, r"algorithm = 3: expected a PolicyGradient"),
        ({"algorithm": lambda step: None}, r"algorithm = None: expected a PolicyGradient"),
        ({"task": "x.jsonl"}, r"task = 'x\.jsonl': expected a task, such as JsonlTask\(path='x\.jsonl'\)"),
        ({"algorithm": dataclasses.replace(algorithms.grpo(), advantage=difficult)},
         r"algorithm\.advantage = difficult: requires 'difficulty', which the trainer does not supply: .*proxy"),
        ({"algorithm": dataclasses.replace(algorithms.grpo(), aggregation=difficult)},
         r"algorithm\.aggregation = difficult: requires 'difficulty'"),
        ({"algorithm": dataclasses.replace(algorithms.aepo(entropy_low=0.1, entropy_high=0.2), carried=None)},
         r"requires 'dropping', which `carried\.entropy_hysteresis` writes"),
        ({"penalty": lambda stats, batch, *, margin: 0.0}, r"penalty = <lambda>: requires 'margin'.*expected kl"),
        ({"rollout": RolloutConfig(completions=1)},
         r"rollout\.completions = 1: expected 2 or more: group_relative is 0 for a group of one"),
    ],
)  # fmt: skip
def test_an_unavailable_field_is_refused_when_the_config_is_built(settings, message):
    with pytest.raises(ValueError, match=message):
        Config(**{"task": StringsTask(), "algorithm": algorithms.grpo()} | settings)


def test_one_completion_is_enough_without_a_group_baseline():
    for algorithm in (algorithms.ppo(), algorithms.remax(), algorithms.reinforce_plus_plus(), algorithms.max_rl()):
        Config(task=StringsTask(), algorithm=algorithm, rollout=RolloutConfig(completions=1))
