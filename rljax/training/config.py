"""Frozen dataclasses that configure a run. A recipe creates them; the command line overrides single fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

from rljax._checks import check
from rljax.advantage import discounted_returns
from rljax.models import MeshConfig, ModelConfig, ShardingRules, TransformerConfig
from rljax.objective import PolicyGradient, require_algorithm
from rljax.rollout import SamplingConfig
from rljax.tasks import Task
from rljax.tasks.task import require_task
from rljax.training.needs import check_groups, check_needs, needs_of
from rljax.training.optimizer import Optimizer, OptimizerConfig, checked


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """Stage 1: maximum likelihood on the task's demonstrations, packed into rows."""

    steps: int = 0
    """Optimizer steps; 0 skips stage 1."""
    rows: int = 64
    """Packed rows per optimizer step."""
    row_length: int = 64
    """Tokens per row. Several demonstrations share a row and are separated by segment ids."""
    microbatches: int = 1
    """Microbatches per optimizer step. More microbatches need less memory.
    The gradient is the same up to rounding (tests/training/accumulation_test.py)."""
    optimizer: Optimizer = OptimizerConfig(learning_rate=1e-3)  # noqa: RUF009 (frozen)
    """AdamW's settings, or any optax.GradientTransformation."""

    def __post_init__(self):
        check(self.steps >= 0, "likelihood.steps", self.steps, "0 or more steps")
        check(self.rows >= 1, "likelihood.rows", self.rows, "1 or more rows")
        check(self.row_length >= 2, "likelihood.row_length", self.row_length, "2 or more tokens")
        check(self.microbatches >= 1, "likelihood.microbatches", self.microbatches, "1 or more")
        check(self.rows % self.microbatches == 0, "likelihood.rows", self.rows,
              f"a multiple of likelihood.microbatches = {self.microbatches}")  # fmt: skip
        object.__setattr__(self, "optimizer", checked(self.optimizer, "likelihood.optimizer"))


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Stage 2: what a rollout samples, and how many optimizer steps train on it."""

    prompts: int = 64
    """Prompts per rollout (P)."""
    completions: int = 8
    """Completions per prompt (G, the group size)."""
    prompt_length: int = 16
    """Columns for the prompt, in tokens. Shorter prompts are padded on the left."""
    leave_out_long: bool = True
    """Leave out and count prompts longer than `prompt_length`, demonstrations longer than `likelihood.row_length`, and
    held-out problems that are too long for `model.max_length`. False raises an error for each of them."""
    sampling: SamplingConfig = SamplingConfig()  # noqa: RUF009 (frozen)
    """Sampling temperature, top-k, top-p and the token budget of a completion."""
    train_groups: int = 0
    """Train on at most this many of a rollout's groups, chosen from those whose rewards differ; 0 trains on all groups.
    Requires an algorithm whose baseline is computed from the group."""
    cut_reward: float | None = None
    """Reward of a completion that is cut off at its token budget.
    None applies the task's reward function to the incomplete text, as evaluations always do."""
    mask_cut: bool = False
    """Exclude completions cut off at their token budget from the loss, its denominators and their group's baseline.
    This is DAPO's overlong filtering (2503.14476). The metrics `reward` and `finished` still include them."""
    minibatches: int = 1
    """Optimizer steps per pass over the rollout. Each minibatch holds whole groups. 1, with 1 epoch, is on-policy."""
    epochs: int = 1
    """Passes over the rollout."""
    microbatches: int = 1
    """Microbatches per optimizer step. More microbatches need less memory, and completions that are masked, such as
    those of groups that `train_groups` adds without a signal, are skipped in whole microbatches; a single microbatch
    is always computed. The gradient is the same up to rounding (tests/training/step_test.py)."""
    rescore: bool | None = None
    """Recompute log π_old with the training program, since the sampler's log π differs by rounding errors.
    With one optimizer step per rollout, that step computes log π_old; with more, an extra forward pass does.
    None recomputes it only if the model's dtype is narrower than float32."""

    def __post_init__(self):
        for name in ("prompts", "completions", "prompt_length", "minibatches", "epochs", "microbatches"):
            check(getattr(self, name) >= 1, f"rollout.{name}", getattr(self, name), "1 or more")
        cut = self.cut_reward
        check(cut is None or math.isfinite(cut), "rollout.cut_reward", cut, "a finite number, or None")
        check(cut is None or not self.mask_cut, "rollout.mask_cut", self.mask_cut,
              f"False, since rollout.cut_reward = {cut} trains on completions that are cut off")  # fmt: skip
        check(0 <= self.train_groups <= self.prompts, "rollout.train_groups", self.train_groups,
              f"0 (all) to rollout.prompts = {self.prompts}")  # fmt: skip
        check(self.groups % self.minibatches == 0, "rollout.minibatches", self.minibatches,
              f"a divisor of {self.groups}, the number of groups trained on")  # fmt: skip
        check(self.minibatch_rows % self.microbatches == 0, "rollout.microbatches", self.microbatches,
              f"a divisor of {self.minibatch_rows}, the number of rows of a minibatch")  # fmt: skip

    @property
    def groups(self) -> int:
        """Groups trained on per rollout."""
        return self.train_groups or self.prompts

    @property
    def row_length(self) -> int:
        """Tokens per sampled row: prompt columns plus token budget."""
        return self.prompt_length + self.sampling.max_new_tokens

    @property
    def minibatch_rows(self) -> int:
        """Rows per optimizer step."""
        return self.groups // self.minibatches * self.completions

    @property
    def microbatch_rows(self) -> int:
        return self.minibatch_rows // self.microbatches

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.minibatches * self.epochs

    def rescores(self, dtype) -> bool:
        """True if log π_old is recomputed if the model computes in `dtype`."""
        return jnp.finfo(dtype).bits < 32 if self.rescore is None else self.rescore


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value function, a linear head on the policy's hidden states; built only if the algorithm needs `values`."""

    coefficient: float = 0.5
    """Weight of the value loss, which is added to the policy's loss."""
    limit: float = 0.2
    """Bound on the change of a value since the rollout, beyond which the value loss is clipped; inf never clips."""
    returns: Annotated[Callable, tyro.conf.Fixed] = discounted_returns
    """Regression target of the values: a function of (rewards, mask) that returns [P, G, T].
    The default, the reward-to-go, is unbiased for any λ of the advantage.
    If the advantage discounts by γ, use `partial(discounted_returns, gamma=γ)`."""

    def __post_init__(self):
        check(self.coefficient >= 0, "critic.coefficient", self.coefficient, "0 or more")
        check(self.limit > 0, "critic.limit", self.limit, "a positive number (inf never clips)")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluations on held-out problems: quick ones during stage 2, and a full one before and after stage 2."""

    every: int = 20
    """Rollouts between quick evaluations in stage 2; 0 evaluates only at the end of stage 2."""
    watch: tuple[str, ...] = ()
    """Levels in quick evaluations; empty means all levels."""
    watch_problems: int = 256
    """Problems per level in a quick evaluation, with one sample per problem."""
    problems: int = 512
    """Largest number of problems per level in a full evaluation."""
    samples: int = 8
    """Samples per problem in a full evaluation, which reports pass@k for k = 1 and k = samples."""
    batch: int = 512
    """Rows sampled at a time."""
    temperature: float = 1.0
    """Sampling temperature in evaluations, which use neither top-k nor top-p."""
    kl_start: bool = False
    """Record the KL from the start of stage 2 in quick evaluations.
    Keeps a copy of the parameters at the start of stage 2, which otherwise exists only for a penalty or `ref_logp`."""

    def __post_init__(self):
        check(self.every >= 0, "evaluation.every", self.every, "0 (only at the end of stage 2) or more")
        check(self.temperature > 0, "evaluation.temperature", self.temperature,
              "a positive number (greedy decoding is always evaluated too)")  # fmt: skip
        for name in ("watch_problems", "problems", "samples", "batch"):
            check(getattr(self, name) >= 1, f"evaluation.{name}", getattr(self, name), "1 or more")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: its task, model, algorithm, the settings of both stages and of evaluations, and its folder."""

    task: Task
    """The task: problems, tokenizer and reward function."""
    algorithm: Annotated[Any, tyro.conf.Fixed]
    """Objective of stage 2: a PolicyGradient, or a function that maps a rollout's index to a PolicyGradient.
    The algorithm must need the same fields in every rollout."""
    run: Path = Path("runs/default")
    """Folder of the run: checkpoints, metrics and report. The same command resumes from the newest checkpoint in it."""
    seed: int = 0
    """Seed of initialization, data order and sampling. The task's data have a separate seed."""
    steps: int = 100
    """Rollouts of stage 2."""
    model: ModelConfig = TransformerConfig()  # noqa: RUF009 (frozen)
    """The model, such as `TransformerConfig()`, whose vocabulary size comes from the task's tokenizer, or
    `PretrainedModel("FOLDER")`, which brings its tokenizer and parameters."""
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (frozen)
    """Number of devices along each mesh axis; one axis may have -1, for all remaining devices."""
    sharding: ShardingRules = ShardingRules()  # noqa: RUF009 (frozen)
    """Mesh axis that shards each axis of the parameters and activations; None replicates the axis."""
    start_from: Path | None = None
    """Folder of another run. Stage 2 starts from that run's parameters at the end of stage 1; stage 1 is skipped."""
    likelihood: LikelihoodConfig = LikelihoodConfig()
    """Stage 1: maximum likelihood on the task's demonstrations."""
    rollout: RolloutConfig = RolloutConfig()
    """Stage 2: what a rollout samples, and how many optimizer steps train on it."""
    optimizer: Optimizer = OptimizerConfig()  # noqa: RUF009 (frozen)
    """Optimizer of stage 2: AdamW's settings, or any optax.GradientTransformation."""
    critic: CriticConfig = CriticConfig()
    """Value function of stage 2, built only if the algorithm needs `values`."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluations on held-out problems: quick ones during stage 2, and a full one before and after stage 2."""
    reward_map: Annotated[Callable | None, tyro.conf.Fixed] = None
    """Function of (rewards [P, G], key) that returns the rewards to train on; None trains on the task's rewards.
    It may have the keyword-only parameters `finished` [P, G], False if a completion was cut off, and `lengths` [P, G].
    If the algorithm needs rewards of greedy completions, the function is also called with these, as [P, 1]."""
    penalty: Annotated[Callable | None, tyro.conf.Fixed] = None
    """Function of (TokenStats, Batch) that returns a scalar to add to the loss.
    It is called once per microbatch, so it must be a sum over tokens.
    batch.ref_logp holds log-probabilities under the parameters at the start of stage 2.
    A required keyword-only parameter `kl` receives the exact KL from those parameters, [*B, T], in nats."""
    checkpoint_every: int = 40
    """Rollouts between checkpoints in stage 2 (in stage 1, ten times as many optimizer steps).
    0 saves only at the end of each stage."""
    keep_every: int = 0
    """Keep the parameters of every n-th checkpoint permanently, in the run's folder `history`; 0 keeps none."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `tb`)."""

    def __post_init__(self):
        require_task(self.task)
        check(self.seed >= 0, "seed", self.seed, "0 or more")
        check(self.steps >= 0, "steps", self.steps, "0 or more rollouts")
        check(self.checkpoint_every >= 0, "checkpoint_every", self.checkpoint_every, "0 or more")
        check(self.keep_every >= 0, "keep_every", self.keep_every, "0 (none) or more")
        check(not self.keep_every or self.checkpoint_every > 0, "checkpoint_every", self.checkpoint_every,
              f"1 or more, since keep_every = {self.keep_every} counts checkpoints")  # fmt: skip
        object.__setattr__(self, "optimizer", checked(self.optimizer, "optimizer"))
        temperature = self.rollout.sampling.temperature
        check(
            temperature > 0,
            "rollout.sampling.temperature",
            temperature,
            "a positive number, since greedy completions of a prompt are all equal",
        )
        limit = self.model.max_length
        lengths = {"rollout.prompt_length + rollout.sampling.max_new_tokens": self.rollout.row_length}
        if self.likelihood.steps:
            lengths["likelihood.row_length"] = self.likelihood.row_length
        for argument, length in lengths.items():
            check(length <= limit, argument, length, f"at most model.max_length = {limit}")

        first = self.algorithm_at(0)
        check_needs(first, self.penalty)
        check_groups(first, self.rollout.completions, self.rollout.train_groups)

    def algorithm_at(self, step: int) -> PolicyGradient:
        algorithm = self.algorithm
        if not isinstance(algorithm, PolicyGradient) and _takes_a_step(algorithm):
            algorithm = algorithm(step)
        try:
            require_algorithm("algorithm", algorithm)
        except TypeError as error:
            raise ValueError(str(error)) from None  # every other field of a config raises ValueError
        return algorithm

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """Names of the fields that the algorithm and the penalty require from the trainer."""
        return needs_of(self.algorithm_at(0), self.penalty)


def _takes_a_step(function: object) -> bool:
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    return True
