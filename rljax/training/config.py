"""What a run is: frozen dataclasses, written as Python in a recipe, overridden field by field on the command line."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from rljax.advantage import discounted_returns
from rljax.models import TransformerConfig
from rljax.objective import PolicyGradient, required_fields
from rljax.rollout import SamplingConfig
from rljax.tasks import Task


def check(holds: bool, argument: str, value: object, wanted: str) -> None:
    """Raises the one error that every field out of range gives: its name, its value, what would be right."""
    if not holds:
        raise ValueError(f"{argument} = {value!r}: expected {wanted}")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis takes; one axis may be -1, which takes all that the others leave."""

    data: int = -1
    """Replicas: each holds all parameters and sees its share of the rows."""
    fsdp: int = 1
    """Shards of the parameters along their embedding axis; rows are split over these devices too."""
    tensor: int = 1
    """Shards of heads, MLP columns and vocabulary."""

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            check(size == -1 or size >= 1, f"mesh.{axis}", size, "a positive number of devices, or -1 for the rest")
        check(list(dataclasses.astuple(self)).count(-1) <= 1, "mesh", dataclasses.astuple(self), "at most one -1")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a linear warm-up and an optional cosine decay, with clipping by global norm."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Optimizer steps over which the rate rises linearly from 0."""
    decay_steps: int = 0
    """Optimizer steps, the warm-up included, over which it then falls by a cosine to a tenth; 0 keeps it constant."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.98
    """Decay of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (vectors, such as norm scales, have none)."""
    clip_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to it."""
    microbatches: int = 1
    """Parts in which an optimizer step's rows pass through the model; changes memory, not the gradient."""

    def __post_init__(self):
        check(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            "optimizer.learning_rate",
            self.learning_rate,
            "a positive number",
        )
        check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "0 or more steps")
        check(self.decay_steps == 0 or self.decay_steps > self.warmup_steps, "optimizer.decay_steps", self.decay_steps,
              f"0 (constant), or more than warmup_steps = {self.warmup_steps}")  # fmt: skip
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "a number in [0, 1)")
        check(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        check(self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm, "a positive norm (inf never clips)")
        check(self.microbatches >= 1, "optimizer.microbatches", self.microbatches, "1 or more")


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """Stage 1: maximum likelihood on the task's demonstrations, packed into rows."""

    steps: int = 0
    """Optimizer steps; 0 leaves the stage out."""
    rows: int = 64
    """Packed rows a step."""
    row_length: int = 64
    """Tokens a row; several problems share one, kept apart by segment ids."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    """Its optimizer."""

    def __post_init__(self):
        check(self.steps >= 0, "likelihood.steps", self.steps, "0 or more steps")
        check(self.rows >= 1, "likelihood.rows", self.rows, "1 or more rows")
        check(self.row_length >= 2, "likelihood.row_length", self.row_length, "2 or more tokens")
        check(self.rows % self.optimizer.microbatches == 0, "likelihood.rows", self.rows,
              f"a multiple of likelihood.optimizer.microbatches = {self.optimizer.microbatches}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Stage 2: what one rollout samples, and how many optimizer steps learn from it."""

    prompts: int = 64
    """Prompts a rollout (P)."""
    completions: int = 8
    """Completions a prompt (G, the group)."""
    prompt_length: int = 16
    """Columns for the prompt, in tokens; shorter prompts are padded on the left."""
    sampling: SamplingConfig = SamplingConfig()  # noqa: RUF009 (frozen)
    """Temperature, truncation and the budget of new tokens."""
    train_groups: int = 0
    """Groups of a rollout that are trained on, those with a signal (rewards that differ) first; 0 trains on all. For
    algorithms whose baseline is the group's: to others equal rewards say something too."""
    minibatches: int = 1
    """Optimizer steps a pass over the rollout; a minibatch holds whole groups. 1 is on-policy."""
    epochs: int = 1
    """Passes over the rollout."""

    def __post_init__(self):
        for name in ("prompts", "completions", "prompt_length", "minibatches", "epochs"):
            check(getattr(self, name) >= 1, f"rollout.{name}", getattr(self, name), "1 or more")
        check(0 <= self.train_groups <= self.prompts, "rollout.train_groups", self.train_groups,
              f"0 (all) to rollout.prompts = {self.prompts}")  # fmt: skip
        check(self.groups % self.minibatches == 0, "rollout.minibatches", self.minibatches,
              f"a divisor of the {self.groups} groups trained on")  # fmt: skip

    @property
    def groups(self) -> int:
        """Groups trained on."""
        return self.train_groups or self.prompts

    @property
    def row_length(self) -> int:
        """Tokens of a sampled row: prompt and budget."""
        return self.prompt_length + self.sampling.max_new_tokens

    @property
    def minibatch_rows(self) -> int:
        """Rows of one optimizer step."""
        return self.groups // self.minibatches * self.completions


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value function, on the policy's own hidden states; it is there only where the advantage needs `values`."""

    coefficient: float = 0.5
    """Weight of its loss beside the policy's."""
    limit: float = 0.2
    """How far a value may move from the rollout's before its loss is clipped."""
    returns: Annotated[Callable, tyro.conf.Fixed] = discounted_returns
    """What it predicts: maps (rewards, mask) to returns [P, G, T]. The reward-to-go has no bias, whatever λ the
    advantage uses; where that discounts, `partial(discounted_returns, gamma=…)` by the same γ."""

    def __post_init__(self):
        check(self.coefficient >= 0, "critic.coefficient", self.coefficient, "0 or more")
        check(self.limit > 0, "critic.limit", self.limit, "a positive number (inf never clips)")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out problems: watched cheaply during training, measured carefully at the end of each stage."""

    every: int = 20
    """Rollouts between two looks at the held-out problems during RL; 0 never looks."""
    watch: tuple[str, ...] = ()
    """Levels looked at during RL; none named means all."""
    watch_problems: int = 256
    """Problems a level, one sample each, in such a look."""
    problems: int = 512
    """Problems a level in an evaluation (at most all there are)."""
    samples: int = 8
    """Samples a problem in an evaluation; pass@k is given for k = 1 and k = samples."""
    batch: int = 512
    """Rows sampled at a time."""
    temperature: float = 1.0
    """Temperature of the samples, untruncated, whatever the rollouts' is."""

    def __post_init__(self):
        check(self.every >= 0, "evaluation.every", self.every, "0 (never) or more")
        check(self.temperature > 0, "evaluation.temperature", self.temperature, "a positive number (greedy is apart)")
        for name in ("watch_problems", "problems", "samples", "batch"):
            check(getattr(self, name) >= 1, f"evaluation.{name}", getattr(self, name), "1 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a task, a model, two stages of training, an evaluation, and where it is kept."""

    task: Task
    """What is learned: problems, tokenizer, reward."""
    algorithm: Annotated[Any, tyro.conf.Fixed]  # tyro's hints fail on the union of a dataclass and a function
    """The objective of stage 2: a PolicyGradient, or a function of the rollout's step that returns one, whose functions
    need the same fields at every step."""
    run: Path = Path("runs/default")
    """Folder of the run: checkpoints, metrics, report. The same command goes on from what it holds."""
    seed: int = 0
    """Seed of initialisation, data order and sampling (the task's data have a seed of their own)."""
    steps: int = 100
    """Rollouts of stage 2."""
    model: TransformerConfig = TransformerConfig()  # noqa: RUF009 (frozen)
    """The transformer; its vocabulary is the tokenizer's."""
    mesh: MeshConfig = MeshConfig()
    """Device mesh (data, fsdp, tensor)."""
    start_from: Path | None = None
    """Another run's folder: start stage 2 from the end of its stage 1, in place of an own stage 1."""
    likelihood: LikelihoodConfig = LikelihoodConfig()
    """Stage 1."""
    rollout: RolloutConfig = RolloutConfig()
    """Stage 2."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Stage 2's optimizer."""
    critic: CriticConfig = CriticConfig()
    """The value function of stage 2, where the algorithm has one."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out problems."""
    reward_map: Annotated[Callable | None, tyro.conf.Fixed] = None
    """Maps (rewards [P, G], key) to the rewards that are trained on; None leaves them as verified. Greedy completions'
    rewards, where the algorithm asks for them, pass through it as groups of one, [P, 1]."""
    penalty: Annotated[Callable | None, tyro.conf.Fixed] = None
    """A sum added to the loss: maps (TokenStats, Batch) to a scalar; batch.ref_logp is of the start of stage 2. One
    that requires the keyword `kl` is given the exact KL divergence from there, [*B, T]. It is called a microbatch at
    a time, so it should be a sum over tokens."""
    checkpoint_every: int = 40
    """Rollouts between two checkpoints in stage 2 (stage 1: ten times as many optimizer steps); 0: as stages end."""
    tensorboard: bool = False
    """Write TensorBoard event files too (needs the extra `tb`)."""

    def __post_init__(self):
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        check(self.steps >= 0, "steps", self.steps, "0 or more rollouts")
        check(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, "0 or more")
        temperature = self.rollout.sampling.temperature
        check(
            temperature > 0,
            "rollout.sampling.temperature",
            temperature,
            "a positive number: greedy rollouts teach nothing",
        )
        rows, parts, limit = self.rollout.minibatch_rows, self.optimizer.microbatches, self.model.max_length
        check(rows % parts == 0, "optimizer.microbatches", parts, f"a divisor of the {rows} rows of a minibatch")
        lengths = {"rollout.prompt_length + rollout.sampling.max_new_tokens": self.rollout.row_length}
        if self.likelihood.steps:
            lengths["likelihood.row_length"] = self.likelihood.row_length
        for argument, length in lengths.items():
            check(length <= limit, argument, length, f"at most model.max_length = {limit}")

    def algorithm_at(self, step) -> PolicyGradient:
        """The objective at a rollout's step (which may be traced)."""
        return self.algorithm if isinstance(self.algorithm, PolicyGradient) else self.algorithm(step)

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """What the algorithm and the penalty ask of the trainer, by the names of their required parameters."""
        algorithm = self.algorithm_at(0)
        named = required_fields(algorithm.advantage) | required_fields(algorithm.ratio)
        return named | (required_fields(self.penalty) if self.penalty else frozenset())
