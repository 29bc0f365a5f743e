"""Recipe of a small run of the string task, for tests."""

import dataclasses
from pathlib import Path

import jax

from rljax import algorithms
from rljax.models import TransformerConfig
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask, TaskData
from rljax.training import Config, EvaluationConfig, LikelihoodConfig, OptimizerConfig, RolloutConfig


@dataclasses.dataclass(frozen=True)
class FewLevels(StringsTask):
    """The string task with three of its six levels."""

    def load(self) -> TaskData:
        data = super().load()
        levels = ("level 1", "level 2 held-out pairs", "level 4")
        return dataclasses.replace(data, held_out={level: data.held_out[level] for level in levels})


def some_right(rewards, key):
    """Random rewards, 1 with probability 1/2, since the tiny model never solves a problem."""
    return jax.random.bernoulli(key, 0.5, rewards.shape).astype(rewards.dtype)


config = Config(
    run=Path("runs/tiny"),
    task=FewLevels(demonstrations=400, prompts=200, problems=24),
    model=TransformerConfig(width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp=64, max_length=64),
    likelihood=LikelihoodConfig(
        steps=12, rows=8, row_length=42, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    ),
    algorithm=algorithms.dapo(),
    reward_map=some_right,
    steps=6,
    rollout=RolloutConfig(
        prompts=8,
        completions=4,
        prompt_length=8,
        sampling=SamplingConfig(max_new_tokens=10),
        minibatches=2,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    evaluation=EvaluationConfig(every=3, watch=("level 1",), watch_problems=8, problems=8, samples=2, batch=16),
    checkpoint_every=1,
)
