"""The trainer: configs, the two stages, checkpoints, and what a person sees."""

from rljax.models import MeshConfig, ShardingRules
from rljax.training.config import (
    Config,
    CriticConfig,
    EvaluationConfig,
    LikelihoodConfig,
    OptimizerConfig,
    RolloutConfig,
)

__all__ = [
    "Config",
    "CriticConfig",
    "EvaluationConfig",
    "LikelihoodConfig",
    "MeshConfig",
    "OptimizerConfig",
    "RolloutConfig",
    "ShardingRules",
]
