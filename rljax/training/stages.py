"""The two training stages, each with its parameters, optimizer state and position in the data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rljax import penalty
from rljax.metrics import reward_summary
from rljax.objective import PolicyGradient
from rljax.rewards import informative
from rljax.rollout import SamplingConfig
from rljax.tasks import Problem
from rljax.tasks.batching import batches, pack
from rljax.tasks.task import given
from rljax.training.collect import Drawn, draw, rollouts_of, with_signal_first, without_cut
from rljax.training.components import Components
from rljax.training.config import Config
from rljax.training.errors import RunError
from rljax.training.keys import purpose_key
from rljax.training.optimizer import Optimizer, abstract_state, init_state, make_optimizer
from rljax.training.placement import to_host
from rljax.training.step.accumulation import State
from rljax.training.step.likelihood import make_update as make_likelihood_update
from rljax.training.step.policy import make_update as make_policy_update
from rljax.training.step.policy import summarize
from rljax.training.step.scoring import Scorer, make_prepare, make_score, shared_prompt
from rljax.training.validation import LeftOut

SAMPLES_SHOWN = 12


class Stage:
    """Interface of a stage for the training loop; subclasses implement `step` and may add state."""

    name: str
    """Name of the stage in metrics and checkpoint records."""
    opening = ""
    """Name of the evaluation of the stage's first parameters; empty if they are not evaluated."""
    steps: int
    checkpoint_every: int
    """Steps between checkpoints; 0 saves only at the end of the stage."""
    first_checkpoint: int
    """Number of the checkpoint at step 0 of the stage; the numbers increase over both stages."""
    look_every = 0
    """Steps between quick evaluations; 0 disables them."""

    def __init__(self, optimizer: Optimizer, iterator, parts: Components):
        self.optimizer, self.iterator, self.parts = make_optimizer(optimizer), iterator, parts
        self.samples: list[dict] = []  # completions of the newest rollout, for the report
        self.left_out: dict[str, LeftOut] = {}  # problems that are too long for this stage
        self.state: State

    def begin(self, params) -> None:
        self.state = State(params, init_state(self.optimizer, params))

    def step(self, n: int, key: jax.Array) -> tuple[dict, Any]:
        """Runs step n and returns (metrics, batch); `metrics["tokens"]` is the number of trained or sampled tokens."""
        raise NotImplementedError

    def durations(self, seconds: float) -> dict[str, float]:
        """The parts of the `seconds` that the newest step took, as metrics."""
        return {}

    def look(self) -> dict[str, float]:
        """Metrics that a quick evaluation records in addition to accuracy and reward."""
        return {}

    def state_tree(self) -> dict:
        """The arrays to save in a checkpoint."""
        return {"params": self.state.params, "opt": self.state.opt}

    def abstract_tree(self, record: dict) -> dict:
        """Shapes and shardings of the `state_tree` that was saved with `record`."""
        params = self.parts.model.abstract_params(self.parts.mesh)
        return {"params": params, "opt": abstract_state(self.optimizer, params)}

    def record(self) -> dict:
        """The JSON record to save in a checkpoint."""
        return {"phase": self.name, "place": self.iterator.get_state()}

    def restore(self, record: dict, tree: dict) -> None:
        self.state = State(tree["params"], tree["opt"])
        self.iterator.set_state(record["place"])


class LikelihoodStage(Stage):
    """Stage 1: packed demonstrations under maximum likelihood."""

    name = "likelihood"

    def __init__(self, config: Config, parts: Components):
        settings, data = config.likelihood, parts.data
        if not data.demonstrations:
            raise ValueError(f"likelihood.steps = {settings.steps}: expected 0, since the task has no demonstrations "
                             "(a JSONL task takes them from `solution`)")  # fmt: skip
        rows = pack(data.demonstrations, data.tokenizer, settings.row_length, stop_ids=data.stop_ids,
                    leave_out_long=config.rollout.leave_out_long)  # fmt: skip
        super().__init__(settings.optimizer, batches(rows, settings.rows, config.seed), parts)
        total, packed = len(data.demonstrations), int(rows["segment_ids"].max(axis=1).sum())
        limit = f"likelihood.row_length = {settings.row_length}"
        self.left_out = {"demonstrations": LeftOut(total - packed, total, limit)}
        self.steps, self.checkpoint_every, self.first_checkpoint = settings.steps, 10 * config.checkpoint_every, 0
        scorer = Scorer(parts.model, parts.mesh)  # no banned tokens: a demonstration may contain them
        self._update = make_likelihood_update(settings.microbatches, scorer, self.optimizer)

    def step(self, n: int, key: jax.Array) -> tuple[dict, Any]:
        batch = next(self.iterator)
        self.state, metrics = self._update(self.state, self.parts.rows_to_devices(batch))
        return {**metrics, "tokens": int(batch["mask"].sum())}, batch


class PolicyStage(Stage):
    """Stage 2: each step draws one rollout, computes its rewards and takes its optimizer steps."""

    name, opening = "rl", "before RL"

    def __init__(self, config: Config, parts: Components):
        super().__init__(config.optimizer, batches(parts.prompts, config.rollout.prompts, config.seed), parts)
        self.config, self.needs, self.left_out = config, config.needs, parts.left_out
        self.steps, self.checkpoint_every = config.steps, config.checkpoint_every
        self.first_checkpoint = config.likelihood.steps + 1
        self.look_every = config.evaluation.every
        self.reference: Any = None  # parameters at the start of stage 2, if something needs them
        self.carried: Any = ()  # state that the algorithm carries between rollouts
        self._drawn: list[Drawn] = []  # of the newest step
        self._start: tuple[Any, Any] | None = None
        """log π − log π_start and the mask of the rollout before a quick evaluation, with `evaluation.kl_start`."""
        shared = shared_prompt(config.rollout, config.sharding.row_shards(parts.mesh))
        scorer = Scorer(parts.model, parts.mesh, config.rollout.sampling.temperature, parts.banned_ids, shared)
        self._score = jax.jit(make_score(scorer, config.rollout.microbatch_rows))
        self._prepare = make_prepare(config, scorer)
        self._update = make_policy_update(config, scorer, self.optimizer)

    def begin(self, params) -> None:
        self.reference = jax.tree.map(jnp.copy, params) if needs_reference(self.config) else None
        self.carried = self.parts.to_devices(jax.tree.map(np.asarray, self._initial()))
        super().begin(params)

    def _initial(self) -> Any:
        carried = self.config.algorithm_at(0).carried
        return carried.init() if carried else ()

    def state_tree(self) -> dict:
        reference = {} if self.reference is None else {"reference": self.reference}
        return {**super().state_tree(), **reference, "carried": self.carried}

    def abstract_tree(self, record: dict) -> dict:
        if needs_reference(self.config) and not record["reference"]:
            raise RunError(f"run = {str(self.config.run)!r} was started without a copy of its first parameters, which "
                           "`penalty`, `ref_logp` and `evaluation.kl_start` need: resume with the settings of that "
                           "run, or start another run with --run FOLDER")  # fmt: skip
        tree, whole = super().abstract_tree(record), NamedSharding(self.parts.mesh, P())
        carried = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), jax.eval_shape(self._initial)
        )
        reference = {"reference": tree["params"]} if record["reference"] else {}
        return {**tree, **reference, "carried": carried}

    def record(self) -> dict:
        return {**super().record(), "samples": self.samples, "reference": self.reference is not None}

    def restore(self, record: dict, tree: dict) -> None:
        super().restore(record, tree)
        self.carried, self.samples = tree["carried"], record["samples"]
        self.reference = tree["reference"] if needs_reference(self.config) else None

    def step(self, n: int, key: jax.Array) -> tuple[dict, Any]:
        settings = self.config.rollout
        prompts = next(self.iterator)
        problems = [self.parts.data.prompts[i] for i in prompts["index"]]
        drawn = draw(self.parts, settings.sampling, self.state.params, prompts, problems,
                     purpose_key(key, "rollout", n), completions=settings.completions,
                     cut_reward=settings.cut_reward)  # fmt: skip
        self._drawn = [drawn]
        solved = [bool(self.parts.data.solved(float(reward))) for reward in drawn.rewards]
        self._show(drawn, problems, solved)
        sampled = rollouts_of(drawn, prompts["task"])
        rollouts = self._rewarded(sampled, drawn, prompts, problems, n, key)
        if settings.mask_cut:
            rollouts = without_cut(rollouts, drawn.finished)
        signal: Any = np.asarray(informative(sampled.rewards, rollouts.mask))
        chosen = rollouts
        if settings.train_groups:
            mapped = self.config.reward_map is not None
            learned: Any = np.asarray(informative(rollouts.rewards, rollouts.mask)) if mapped else signal
            chosen = with_signal_first(rollouts, learned, settings.train_groups)
        metrics = self._learn(chosen, n)
        about = reward_summary(sampled.rewards, sampled.mask, signal)
        if settings.completions == 1:
            del about["informative"]  # a single completion is not a group whose rewards could differ
        about |= {"finished": drawn.samples.finished.mean(), "solved": np.mean(solved), "tokens": sampled.mask.sum()}
        return {**metrics, **about}, chosen

    def durations(self, seconds: float) -> dict[str, float]:
        """Seconds of sampling (with greedy completions), of the reward function, and of all the rest, the learning."""
        sampling, verification = (
            sum(getattr(drawn, name) for drawn in self._drawn) for name in ("seconds_sampling", "seconds_verification")
        )
        return {"seconds_sampling": sampling, "seconds_verification": verification,
                "seconds_learning": seconds - sampling - verification}  # fmt: skip

    def _rewarded(self, rollouts, drawn: Drawn, prompts: dict, problems: list[Problem], n: int, key: jax.Array):
        """Applies `reward_map` and, if the algorithm needs greedy rewards, samples and adds them."""
        mapped, reward_key = self.config.reward_map, purpose_key(key, "rewards", n)

        def trained_on(rewards, drawn: Drawn) -> Any:
            if mapped is None:
                return rewards
            about = {"finished": drawn.finished, "lengths": drawn.lengths}
            offered = {name: jnp.asarray(x.reshape(rewards.shape)) for name, x in about.items()}
            return np.asarray(given(mapped, offered)(jnp.asarray(rewards), reward_key))

        rollouts = dataclasses.replace(rollouts, rewards=trained_on(rollouts.rewards, drawn))
        if "greedy_rewards" not in self.needs:
            return rollouts
        budget = self.config.rollout.sampling.max_new_tokens
        greedy = draw(self.parts, SamplingConfig(max_new_tokens=budget, temperature=0.0), self.state.params, prompts,
                      problems, purpose_key(key, "greedy", n), cut_reward=self.config.rollout.cut_reward)  # fmt: skip
        self._drawn.append(greedy)
        return dataclasses.replace(rollouts, greedy_rewards=trained_on(greedy.rewards[:, None], greedy)[:, 0])

    def _learn(self, rollouts, n: int) -> dict:
        """Takes the rollout's optimizer steps and returns their metrics; minibatch i of M has groups i, i + M, …."""
        settings, params = self.config.rollout, self.state.params
        algorithm = on_host(self.config.algorithm_at(n))
        rollouts = self.parts.to_devices(rollouts)
        looked_at = n + 1 == self.steps or (self.look_every and (n + 1) % self.look_every == 0)
        if looked_at and self.config.evaluation.kl_start:
            ours, start = (self._score(of, rollouts).stats.logp for of in (params, self.reference))
            self._start = ours - start, rollouts.mask
        prepared, self.carried = self._prepare(params, self.reference, rollouts, self.carried, algorithm)
        reference = self.reference if "kl" in self.needs else None
        history = []
        for _ in range(settings.epochs):
            for i in range(settings.minibatches):
                part = jax.tree.map(lambda x: x[i :: settings.minibatches] if x.ndim else x, prepared)  # noqa: B023
                self.state, sums = self._update(self.state, reference, part, algorithm)
                history.append(sums)
        return summarize(history)

    def look(self) -> dict[str, float]:
        """`kl_start`: mean k3 over the tokens of the last rollout, an estimate of KL(π ‖ π_start) in nats.

        Empty without `evaluation.kl_start`.
        """
        if self._start is None:
            return {}
        log_ratio, mask = to_host(self._start)
        if not mask.any():
            return {}
        return {"kl_start": float(np.mean(penalty.k3(log_ratio[mask])))}

    def _show(self, drawn: Drawn, problems: list[Problem], solved: list[bool]) -> None:
        """Stores the first completion of each of the first SAMPLES_SHOWN prompts for the report."""
        group = self.config.rollout.completions
        of_first = (drawn.texts[::group], drawn.rewards[::group], solved[::group])
        shown = list(zip(problems, *of_first, strict=True))[:SAMPLES_SHOWN]
        self.samples = [
            {"prompt": p.prompt, "completion": text, "answer": p.answer, "reward": float(reward), "level": p.level,
             "solved": right}
            for p, text, reward, right in shown
        ]  # fmt: skip


def needs_reference(config: Config) -> bool:
    """True if a penalty, a field or the quick evaluations need the parameters at the start of stage 2."""
    return config.penalty is not None or config.evaluation.kl_start or bool(config.needs & {"ref_logp", "kl"})


def on_host(algorithm: PolicyGradient) -> PolicyGradient:
    """The algorithm with its hyper-parameters as Python numbers or NumPy arrays, equal on every process."""
    return jax.tree.map(lambda x: np.asarray(x) if np.ndim(x) else np.asarray(x).item(), algorithm)


STAGES: dict[str, Callable[[Config, Components], Stage]] = {s.name: s for s in (LikelihoodStage, PolicyStage)}
"""The stages by name, in training order."""
