"""The trainer: configs, the two stages, checkpoints, and what a person sees."""

from rljax.training.config import (
    Config,
    CriticConfig,
    EvaluationConfig,
    LikelihoodConfig,
    MeshConfig,
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
]
