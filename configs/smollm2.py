"""SmolLM2-135M-Instruct on a task of reasoning-gym with DAPO: `make smollm`.

A real open-weight model finds a name in a short text of six statements ("Who worships playing golf?"). It first
imitates 64 worked answers (stage 1, 8 optimizer steps), which teaches it to answer with the name alone; the gain of RL
counts from there. Two other tasks are evaluated but never trained on. See docs/train/smollm2.md for results.
"""

from pathlib import Path

from rljax import algorithms
from rljax.models import PretrainedModel
from rljax.rollout import SamplingConfig
from rljax.tasks import ReasoningGymTask
from rljax.training import Config, EvaluationConfig, LikelihoodConfig, OptimizerConfig, RolloutConfig

config = Config(
    run=Path("runs/smollm2"),
    model=PretrainedModel("models/smollm2", max_length=256),
    task=ReasoningGymTask(
        {"needle_haystack": 1.0},
        settings={
            "needle_haystack": {"min_num_statements": 6, "max_num_statements": 6},
            "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        },
        untrained=("chain_sum", "number_sequence"),
        system="Give only the answer.",
        prompts=2000,
        problems=128,
        demonstrations=64,
    ),
    likelihood=LikelihoodConfig(
        steps=8, rows=16, row_length=112, microbatches=2, optimizer=OptimizerConfig(learning_rate=3e-5, warmup_steps=1)
    ),
    algorithm=algorithms.dapo(),
    steps=50,
    rollout=RolloutConfig(
        prompts=32,
        completions=8,
        prompt_length=96,
        sampling=SamplingConfig(max_new_tokens=6, temperature=0.8),
        train_groups=12,
        microbatches=6,
    ),
    optimizer=OptimizerConfig(learning_rate=3e-5, warmup_steps=3, b2=0.98),
    evaluation=EvaluationConfig(
        every=10, watch=("needle_haystack",), watch_problems=128, problems=128, samples=8, batch=128, temperature=0.8
    ),
    checkpoint_every=25,
)
