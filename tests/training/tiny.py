"""A whole run in seconds: the string task, made small. A recipe that the tests give to real processes."""

from pathlib import Path

from rljax import algorithms
from rljax.models import TransformerConfig
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask
from rljax.training import Config, EvaluationConfig, LikelihoodConfig, OptimizerConfig, RolloutConfig

config = Config(
    run=Path("runs/tiny"),
    task=StringsTask(demonstrations=400, prompts=200, problems=24),
    model=TransformerConfig(width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp=64, max_length=64),
    likelihood=LikelihoodConfig(
        steps=12, rows=8, row_length=42, optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
    ),
    algorithm=algorithms.dapo(),
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
