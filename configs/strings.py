"""The string task with DAPO, the default recipe: `make train` takes about 7 minutes on 2 CPU cores.

A transformer of 0.6 M parameters learns 25 functions and 60 pairs of them from demonstrations (stage 1), then
learns to compose functions from outcome rewards (stage 2, on 204 other pairs). See docs/benchmarks.md for results.
"""

from pathlib import Path

from rljax import algorithms
from rljax.models import TransformerConfig
from rljax.rollout import SamplingConfig
from rljax.tasks import StringsTask
from rljax.training import Config, EvaluationConfig, LikelihoodConfig, OptimizerConfig, RolloutConfig

config = Config(
    run=Path("runs/strings"),
    task=StringsTask(),
    model=TransformerConfig(width=128, layers=3, heads=4, kv_heads=4, head_dim=32, mlp=344, max_length=64),
    likelihood=LikelihoodConfig(
        steps=900,
        rows=64,
        row_length=42,
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=50, decay_steps=900, weight_decay=0.05),
    ),
    algorithm=algorithms.dapo(),
    steps=200,
    rollout=RolloutConfig(
        prompts=64,
        completions=8,
        prompt_length=8,
        sampling=SamplingConfig(max_new_tokens=20, temperature=1.25),
        train_groups=32,
        minibatches=2,
    ),
    optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=10, decay_steps=400),  # two per rollout
    evaluation=EvaluationConfig(
        every=20, watch=("level 1", "level 2 trained pairs", "level 2 held-out pairs"), kl_start=True
    ),
)
