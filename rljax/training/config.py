"""The config of a run: frozen dataclasses, written in a recipe, overridden field by field on the command line."""

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
from rljax._expression import shown
from rljax.advantage import discounted_returns
from rljax.models import MeshConfig, ModelConfig, ShardingRules, TransformerConfig
from rljax.objective import PolicyGradient, require_algorithm
from rljax.rollout import SamplingConfig
from rljax.tasks import Task
from rljax.tasks.task import require_task
from rljax.training.needs import check_groups, check_needs, needs_of
from rljax.training.optimizer import Optimizer, OptimizerConfig, checked


def _cannot_be_parsed(arguments: list[str]) -> Any:
    raise ValueError("an algorithm is written in a recipe")


_AS_IT_PRINTS = tyro.constructors.PrimitiveConstructorSpec(  # one field of --help, not the fields of a dataclass
    nargs=1,
    metavar="",
    instance_from_str=_cannot_be_parsed,
    is_instance=lambda value: True,
    str_from_instance=lambda value: [shown(value)],
)


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """Stage 1: maximum likelihood on the task's demonstrations, packed into rows."""

    steps: int = 0
    """Optimizer steps; 0 leaves the stage out."""
    rows: int = 64
    """Packed rows a step."""
    row_length: int = 64
    """Tokens a row; several problems share one, kept apart by segment ids."""
    microbatches: int = 1
    """Parts in which a step's rows pass through the model; changes memory, not the gradient."""
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
    cut_reward: float | None = None
    """Reward of a completion that is cut at its budget; None: the task's reward function judges the cut text, as an
    evaluation always does."""
    mask_cut: bool = False
    """Leave completions that are cut at their budget out of training: of their group's baseline, the loss and its
    denominators (overlong filtering, DAPO 2503.14476). The metrics `reward` and `finished` count them."""
    minibatches: int = 1
    """Optimizer steps a pass over the rollout; a minibatch holds whole groups. 1 is on-policy."""
    epochs: int = 1
    """Passes over the rollout."""
    microbatches: int = 1
    """Parts in which a minibatch's rows pass through the model; changes memory, not the gradient."""
    rescore: bool | None = None
    """Take log π_old from the training programs in place of the sampler's, which differs by rounding: from the
    optimizer step itself if the rollout has but one, else from a pass over the rollout before the first. None: if the
    model computes below float32."""

    def __post_init__(self):
        for name in ("prompts", "completions", "prompt_length", "minibatches", "epochs", "microbatches"):
            check(getattr(self, name) >= 1, f"rollout.{name}", getattr(self, name), "1 or more")
        cut = self.cut_reward
        check(cut is None or math.isfinite(cut), "rollout.cut_reward", cut, "a finite number, or None")
        check(cut is None or not self.mask_cut, "rollout.mask_cut", self.mask_cut,
              f"False, since rollout.cut_reward = {cut} rewards completions that are cut")  # fmt: skip
        check(0 <= self.train_groups <= self.prompts, "rollout.train_groups", self.train_groups,
              f"0 (all) to rollout.prompts = {self.prompts}")  # fmt: skip
        check(self.groups % self.minibatches == 0, "rollout.minibatches", self.minibatches,
              f"a divisor of the {self.groups} groups trained on")  # fmt: skip
        check(self.minibatch_rows % self.microbatches == 0, "rollout.microbatches", self.microbatches,
              f"a divisor of the {self.minibatch_rows} rows of a minibatch")  # fmt: skip

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

    @property
    def microbatch_rows(self) -> int:
        """Rows that pass through the model at once."""
        return self.minibatch_rows // self.microbatches

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of one rollout."""
        return self.minibatches * self.epochs

    def rescores(self, dtype) -> bool:
        """Whether log π_old is recomputed, of a model that computes in `dtype`."""
        return jnp.finfo(dtype).bits < 32 if self.rescore is None else self.rescore


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The value function, on the policy's own hidden states; it exists only if the advantage needs `values`."""

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
    algorithm: Annotated[Any, _AS_IT_PRINTS, tyro.conf.Fixed]
    """The objective of stage 2: a PolicyGradient, or a function of the rollout's step that returns one, whose functions
    need the same fields at every step."""
    run: Path = Path("runs/default")
    """Folder of the run: checkpoints, metrics, report. The same command goes on from what it holds."""
    seed: int = 0
    """Seed of initialization, data order and sampling (the task's data have a seed of their own)."""
    steps: int = 100
    """Rollouts of stage 2."""
    model: ModelConfig = TransformerConfig()  # noqa: RUF009 (frozen)
    """The model; its vocabulary is the tokenizer's."""
    mesh: MeshConfig = MeshConfig()  # noqa: RUF009 (frozen)
    """Devices along each mesh axis."""
    sharding: ShardingRules = ShardingRules()  # noqa: RUF009 (frozen)
    """Mesh axis over which each logical axis of the parameters is split."""
    start_from: Path | None = None
    """Another run's folder: start stage 2 from the end of its stage 1, in place of an own stage 1."""
    likelihood: LikelihoodConfig = LikelihoodConfig()
    """Stage 1."""
    rollout: RolloutConfig = RolloutConfig()
    """Stage 2."""
    optimizer: Optimizer = OptimizerConfig()  # noqa: RUF009 (frozen)
    """Stage 2's optimizer: AdamW's settings, or any optax.GradientTransformation."""
    critic: CriticConfig = CriticConfig()
    """The value function of stage 2, if the algorithm has one."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out problems."""
    reward_map: Annotated[Callable | None, tyro.conf.Fixed] = None
    """Maps (rewards [P, G], key) to the rewards that are trained on; None leaves them as verified. If it has
    keyword-only parameters of these names, it is given `finished` [P, G] (False for a completion that was cut) and
    `lengths` [P, G], in tokens. Greedy completions' rewards, if the algorithm asks for them, pass through it as groups
    of one, [P, 1]."""
    penalty: Annotated[Callable | None, tyro.conf.Fixed] = None
    """A sum added to the loss: maps (TokenStats, Batch) to a scalar; batch.ref_logp is of the start of stage 2. One
    that requires the keyword `kl` is given the exact KL divergence from there, [*B, T]. It is called a microbatch at
    a time, so it should be a sum over tokens."""
    checkpoint_every: int = 40
    """Rollouts between two checkpoints in stage 2 (stage 1: ten times as many optimizer steps); 0: as stages end."""
    keep_every: int = 0
    """Every n-th checkpoint's parameters are kept for good, in the run's folder `history`; 0 keeps none. The last
    checkpoint is among them if it is an n-th one."""
    tensorboard: bool = False
    """Write TensorBoard event files too (needs the extra `tb`)."""

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
            "a positive number: greedy rollouts teach nothing",
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
        """The objective at a rollout's step."""
        algorithm = self.algorithm
        if not isinstance(algorithm, PolicyGradient) and _takes_a_step(algorithm):
            algorithm = algorithm(step)
        try:
            require_algorithm("algorithm", algorithm)
        except TypeError as error:
            raise ValueError(str(error)) from None  # as every other field of a config
        return algorithm

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """Names that the algorithm and the penalty ask of the trainer."""
        return needs_of(self.algorithm_at(0), self.penalty)


def _takes_a_step(function: object) -> bool:
    """True for a function that can be called with one argument."""
    if not callable(function):
        return False
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    return True
