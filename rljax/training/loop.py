"""The run: stage 1, stage 2, the evaluations between, and a checkpoint from which all of it goes on."""

import time
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp

from rljax.models import create, without_value_head
from rljax.training.checkpoint import Checkpoints, RunError
from rljax.training.config import Config
from rljax.training.evaluation import Evaluator
from rljax.training.gradients import State
from rljax.training.guards import require_finite
from rljax.training.mesh import to_host
from rljax.training.optimizer import abstract_state, init_state
from rljax.training.recipe import describe
from rljax.training.record import (
    decode_key,
    encode_data,
    encode_key,
    encode_shapes,
    require_same_data,
    require_same_shapes,
    require_same_tokenizer,
)
from rljax.training.setting import Setting, make_setting, purpose_key
from rljax.training.stages import LikelihoodStage, PolicyStage
from rljax.training.watcher import Watcher
from rljax.training.workers import Preemption


class PreemptedError(RunError):
    """The run was asked to stop; it saved a checkpoint first."""

    exit_code = 143  # what a process that SIGTERM ended would give: whoever asked knows that it is not done


class Run:
    """One run, in one process or as one of many."""

    def __init__(self, config: Config, folder: Path, watcher: Watcher):
        self.config, self.folder, self.watcher = config, folder, watcher
        self.setting = make_setting(config)
        self.task = encode_data(self.setting.data)
        self.evaluator = Evaluator(config, self.setting)
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.key = jax.random.key(config.seed)
        self.preemption = Preemption()
        self.stage: LikelihoodStage | PolicyStage

    def train(self) -> None:
        """Takes the run from its newest readable checkpoint, or from the beginning, to its end."""
        try:
            self._train()
        except BaseException:
            with suppress(Exception):
                self.checkpoints.wait()  # the save in flight is worth keeping
            raise
        self.checkpoints.close()

    def _train(self) -> None:
        state, step = self._resume() or self._start()
        if self.stage.phase == "likelihood":
            state = self._drive(state, step)
            state, step = self._begin_policy(state.params)
        state = self._drive(state, step)
        self._look(state, self.stage.steps)
        self._evaluate("after RL", state.params)
        self.watcher.samples("end", self.policy.samples)

    @property
    def policy(self) -> PolicyStage:
        """Stage 2, which is what runs now."""
        assert isinstance(self.stage, PolicyStage)
        return self.stage

    # From one stage to the next ----------------------------------------------------------------------------------

    def _start(self):
        """(state, step) of a run that has no checkpoint."""
        mesh, model, _ = self.setting
        _, params = create(model.config, mesh, purpose_key(self.key, "initialise"))
        self.watcher.begin("likelihood", 0)
        if self.config.start_from is not None:
            return self._begin_policy({**params, **stage_one_params(self.config.start_from, self.setting)})
        if self.config.likelihood.steps == 0:
            return self._begin_policy(params)
        self.stage = LikelihoodStage(self.config, self.setting)
        return State(params, init_state(self.stage.optimizer, params)), 0

    def _begin_policy(self, params):
        """Measures stage 1's end and keeps it for good, then (state, step) of stage 2."""
        self._evaluate("before RL", params)
        kept = Checkpoints(self.folder / "stage1")
        policy = without_value_head(params)
        kept.save(0, {"params": policy}, {"task": self.task, "shapes": encode_shapes(policy)})
        kept.close()
        self.stage = PolicyStage(self.config, self.setting)
        self.stage.reference = jax.tree.map(jnp.copy, params)
        state = State(params, init_state(self.stage.optimizer, params))
        self._save(state, 0)
        if self.preemption.asked(self._number(0)):
            self._leave("saved at rl step 0")
        return state, 0

    def _resume(self):
        """(state, step) of the newest readable checkpoint, or None."""
        restored = self.checkpoints.restore(self._target, self.watcher.say)
        if restored is None:
            return None
        record = restored.record
        self.key = decode_key(record["key"])
        self.stage.iterator.set_state(record["data"])
        if isinstance(self.stage, PolicyStage):
            self.stage.reference = restored.tree["reference"]
            self.stage.samples, self.stage.dropping = record["samples"], record.get("dropping", False)
        self.watcher.begin(record["phase"], record["step"])
        self.watcher.say(f"going on from {record['phase']} step {record['step']}")
        return State(restored.tree["params"], restored.tree["opt"]), record["step"]

    def _target(self, record: dict):
        """What a checkpoint restores into; sets the stage that it belongs to."""
        require_same_data(record, self.setting.data, f"run = {str(self.folder)!r}")
        stage = LikelihoodStage if record["phase"] == "likelihood" else PolicyStage
        self.stage = stage(self.config, self.setting)
        params = self.setting.model.abstract_params(self.setting.mesh)
        tree = {"params": params, "opt": abstract_state(self.stage.optimizer, params)}
        return {**tree, "reference": params} if stage is PolicyStage else tree

    # Step by step ------------------------------------------------------------------------------------------------

    def _drive(self, state: State, first: int) -> State:
        """The stage's steps from `first` to its end."""
        stage = self.stage
        for n in range(first, stage.steps):
            every = self.config.evaluation.every if stage.phase == "rl" else 0
            if every and n % every == 0:
                self._look(state, n)
            started = time.perf_counter()
            state, metrics, batch = stage.step(state, n, self.key)
            metrics = {name: float(value) for name, value in to_host(metrics).items()}
            seconds = time.perf_counter() - started
            require_finite(metrics, stage.phase, n, batch, self.folder)
            metrics |= {"seconds": seconds, "tokens_per_second": metrics.pop("tokens") / seconds}
            self.watcher.step(stage.phase, n, metrics)
            if stage.phase == "rl" and n == 0:
                self.watcher.samples("start", self.policy.samples)
            asked = self.preemption.asked(self._number(n + 1))
            if asked or n + 1 == stage.steps or (stage.checkpoint_every and (n + 1) % stage.checkpoint_every == 0):
                self._save(state, n + 1)
            if asked:
                self._leave(f"saved at {stage.phase} step {n + 1}")
        return state

    def _leave(self, how: str):
        """Ends the run that was asked to stop, once its checkpoint is on disk."""
        self.checkpoints.close()
        self.watcher.report(f"stopped, {how}")
        raise PreemptedError(f"asked to stop: {how}. The same command goes on from there")

    def _number(self, step: int) -> int:
        """Checkpoint numbers rise through both stages; stage 2 begins one past the end of stage 1."""
        return step if self.stage.phase == "likelihood" else self.config.likelihood.steps + 1 + step

    def _save(self, state: State, step: int) -> None:
        """A checkpoint, and now and then the report as it stands."""
        tree = {"params": state.params, "opt": state.opt}
        record = {
            "key": encode_key(self.key),
            "phase": self.stage.phase, "step": step, "data": self.stage.iterator.get_state(),
            "task": self.task, "shapes": encode_shapes(state.params), "config": describe(self.config),
        }  # fmt: skip
        if isinstance(self.stage, PolicyStage):
            tree["reference"], record["samples"] = self.stage.reference, self.stage.samples
            record["dropping"] = self.stage.dropping
            self.watcher.samples("latest", self.stage.samples)
        self.checkpoints.save(self._number(step), tree, record)
        self.watcher.refresh(f"{self.stage.phase} step {step} of {self.stage.steps}")

    def _look(self, state: State, n: int) -> None:
        if self.watcher.looked_at(n):
            return
        accuracy = self.evaluator.watch(state.params, purpose_key(self.key, "watch", n))
        self.watcher.look(n, accuracy, self.policy.kl_to_start())

    def _evaluate(self, moment: str, params) -> None:
        self.watcher.say(f"evaluating {moment}")
        figures = {}
        for level, of_level in self.evaluator.levels(params, purpose_key(self.key, "evaluate")):
            figures[level] = of_level
            if self.preemption.asked_alone:
                self._leave(f"while evaluating {moment}; what was trained is saved")
        self.watcher.evaluated(moment, figures)


def stage_one_params(run: Path, setting: Setting):
    """The parameters at the end of another run's stage 1.

    Raises ValueError where it has none, RunError where they are another model's or another tokenizer's.
    """
    folder = run / "stage1"
    if not folder.is_dir():
        raise ValueError(f"start_from = {str(run)!r}: expected the folder of a run that has ended its stage 1")
    kept, where = Checkpoints(folder, read_only=True), f"start_from = {str(run)!r}"

    def target(record):
        require_same_tokenizer(record, setting.data, where)
        params = without_value_head(setting.model.abstract_params(setting.mesh))
        require_same_shapes(record, params, where)
        return params

    restored = kept.restore_params(target, print)
    kept.close()
    if restored is None:
        raise ValueError(f"{where}: its stage 1 was never saved; let that run go on first")
    return restored.tree["params"]
