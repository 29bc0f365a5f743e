"""The trainer: configs, the two training stages, checkpoints, evaluation and reports."""

from importlib.util import find_spec

_NEEDED = (
    "filelock", "flax", "grain", "matplotlib", "numpy", "optax", "orbax", "rich", "sentencepiece",
    "tensorflow_datasets", "tyro",
)  # fmt: skip
if _missing := [name for name in _NEEDED if find_spec(name) is None]:
    raise ImportError(f"rljax.training needs {', '.join(_missing)}: pip install 'rljax-llm[train]'", name=__name__)

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
