"""The training loop of a run: both stages, evaluations and checkpoints."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from rljax.models import without_value_head
from rljax.models.protocol import initialize_value_head
from rljax.training.checkpoint.checkpoints import Checkpoints
from rljax.training.checkpoint.compatibility import (
    TOKENIZER,
    VERSION,
    encode_data,
    encode_shapes,
    read_params,
    require_same_data,
    require_same_version,
)
from rljax.training.checkpoint.folder import save_tokenizer
from rljax.training.components import Components
from rljax.training.config import Config
from rljax.training.description import describe
from rljax.training.errors import PreemptedError
from rljax.training.evaluation.evaluator import Evaluator
from rljax.training.keys import decode_key, encode_key, purpose_key
from rljax.training.nonfinite import require_finite
from rljax.training.placement import to_host
from rljax.training.processes import Preemption
from rljax.training.report.monitor import Monitor
from rljax.training.stages import STAGES, Stage


class Run:
    """The training loop; every process of a multi-host run creates one."""

    def __init__(self, config: Config, parts: Components, monitor: Monitor):
        self.config, self.parts, self.monitor = config, parts, monitor
        self.task = encode_data(parts.data)
        self.evaluator = Evaluator(config, parts)
        self.checkpoints = Checkpoints(config.run / "checkpoints")
        self.history = Checkpoints(config.run / "history", keep=None) if config.keep_every else None
        self.key = jax.random.key(config.seed)
        self.preemption = Preemption()

    def train(self) -> Stage:
        """Trains from the newest readable checkpoint, or from the beginning, to the end; returns the last stage."""
        try:
            stage = self._train()
        except BaseException:
            with suppress(Exception):
                self._wait()  # a save in progress may still succeed
            raise
        self._close()
        return stage

    def _train(self) -> Stage:
        own_first = self.config.likelihood.steps > 0 and self.config.start_from is None
        names = list(STAGES) if own_first else list(STAGES)[1:]
        stage, step = self._resume() or (self._begin(names[0], self._first_params()), 0)
        self._drive(stage, step)
        for name in names[names.index(stage.name) + 1 :]:
            params = stage.state.params
            del stage  # frees the optimizer state before the next stage allocates its own
            stage = self._begin(name, params)
            self._drive(stage, 0)
        self._look(stage, stage.steps)
        self._evaluate("after RL", stage.state.params)
        self.monitor.samples("end", stage.samples)
        return stage

    def _first_params(self):
        """The model's parameters; with `start_from`, those of that run's stage 1 and an initial value head."""
        self.monitor.begin()
        if self.history is not None:
            self.history.clear()
        self._save_tokenizer()
        mesh, model, key = self.parts.mesh, self.parts.model, purpose_key(self.key, "initialize")
        if self.config.start_from is None:
            return self.config.model.parameters(model, mesh, key)
        return {**stage_one_params(self.config.start_from, self.parts), **initialize_value_head(model, mesh, key)}

    def _save_tokenizer(self) -> None:
        if jax.process_index() == 0:
            save_tokenizer(self.config.run, self.parts.data.tokenizer)

    def _begin(self, name: str, params) -> Stage:
        """Creates a stage at step 0; before stage 2, evaluates the parameters and saves them permanently."""
        stage = STAGES[name](self.config, self.parts)
        self.monitor.left_out(stage.left_out)
        if stage.opening:
            self._evaluate(stage.opening, params)
            policy = without_value_head(params)
            kept = Checkpoints(self.config.run / "stage1")
            kept.save(0, {"params": policy}, self._record(policy))
            kept.close()
        stage.begin(params)
        if stage.opening:
            self._save(stage, 0)
            if self.preemption.asked(stage.first_checkpoint):
                self._leave(f"checkpoint saved at {name} step 0")
        return stage

    def _resume(self) -> tuple[Stage, int] | None:
        """The stage and step of the newest undamaged checkpoint, or None if there is no checkpoint."""

        stage: Any = None  # belongs to the record that `target` saw last

        def target(record: dict):
            nonlocal stage
            where = f"run = {str(self.config.run)!r}"
            require_same_version(record, where)
            require_same_data(record, self.parts.data, where)
            stage = STAGES[record["phase"]](self.config, self.parts)
            return stage.abstract_tree(record)

        restored = self.checkpoints.restore(target, self.monitor.say)
        if restored is None:
            return None
        record = restored.record
        self.key = decode_key(record["key"])
        stage.restore(record, restored.tree)
        self._keep(stage, record["step"], again=False)
        if not (self.config.run / TOKENIZER).is_dir():
            self._save_tokenizer()
        self.monitor.resume(stage.name, record["step"])
        self.monitor.say(f"resuming from {stage.name} step {record['step']}")
        return stage, record["step"]

    def _drive(self, stage: Stage, first: int) -> None:
        for n in range(first, stage.steps):
            if stage.look_every and n % stage.look_every == 0:
                self._look(stage, n)
            started = time.perf_counter()
            metrics, batch = stage.step(n, self.key)
            metrics = {name: float(value) for name, value in to_host(metrics).items()}
            seconds = time.perf_counter() - started
            require_finite(metrics, stage.name, n, batch, self.config.run)
            metrics |= {"seconds": seconds, "tokens_per_second": metrics.pop("tokens") / seconds}
            self.monitor.step(stage.name, n, metrics)
            if n == 0:
                self.monitor.samples("start", stage.samples)
            due = n + 1 == stage.steps or (stage.checkpoint_every and (n + 1) % stage.checkpoint_every == 0)
            asked = self.preemption.asked(stage.first_checkpoint + n + 1)
            if asked or due:
                self._save(stage, n + 1)
            if asked:
                self._leave(f"checkpoint saved at {stage.name} step {n + 1}")

    def _leave(self, how: str):
        self._close()
        self.monitor.report(f"stopped: {how}")
        raise PreemptedError(f"received SIGTERM: {how}. Run the same command again to resume")

    def _save(self, stage: Stage, step: int) -> None:
        record = {**self._record(stage.state.params), "key": encode_key(self.key), "step": step,
                  "config": describe(self.config), **stage.record()}  # fmt: skip
        self._keep(stage, step)
        self.checkpoints.save(stage.first_checkpoint + step, stage.state_tree(), record)
        self.monitor.samples("latest", stage.samples)
        self.monitor.refresh(f"{stage.name} step {step} of {stage.steps}")

    def _record(self, params) -> dict:
        """The part of a checkpoint record that `read_params` checks."""
        return {"version": VERSION, "task": self.task, "shapes": encode_shapes(params)}

    def _keep(self, stage: Stage, step: int, again: bool = True) -> None:
        """Saves the parameters of every n-th checkpoint in `history`; `again` overwrites an existing copy."""
        number = stage.first_checkpoint + step
        if self.history is None or step % (self.config.keep_every * stage.checkpoint_every):
            return
        if again or number not in self.history.numbers():
            params = stage.state.params
            record = {**self._record(params), "phase": stage.name, "step": step}
            self.history.save(number, {"params": params}, record)

    def _wait(self) -> None:
        for checkpoints in filter(None, (self.checkpoints, self.history)):
            checkpoints.wait()

    def _close(self) -> None:
        for checkpoints in filter(None, (self.checkpoints, self.history)):
            checkpoints.close()

    def _look(self, stage: Stage, n: int) -> None:
        if self.monitor.looked_at(n):
            return
        look = self.evaluator.watch(stage.state.params, purpose_key(self.key, "watch", n))
        self.monitor.look(n, look.accuracy, look.reward, stage.look())

    def _evaluate(self, moment: str, params) -> None:
        self.monitor.say(f"evaluating {moment}")
        figures = {}
        for level, of_level in self.evaluator.levels(params, purpose_key(self.key, "evaluate")):
            figures[level] = of_level
            if self.preemption.asked_alone:
                self._leave(f"evaluation {moment} was interrupted; all training steps are saved")
        self.monitor.evaluated(moment, figures)


def stage_one_params(run: Path, parts: Components):
    """The parameters at the end of stage 1 of the run in folder `run`.

    Raises ValueError if that run has not finished stage 1, and RunError if its model or tokenizer differs.
    """
    folder, where = run / "stage1", f"start_from = {str(run)!r}"
    if not folder.is_dir():
        raise ValueError(f"{where}: expected the folder of a run that has finished stage 1")
    restored = read_params(folder, without_value_head(parts.model.abstract_params(parts.mesh)),
                           parts.data.tokenizer, where)  # fmt: skip
    if restored is None:
        raise ValueError(f"{where}: expected a run that has saved the end of stage 1; resume that run first")
    return restored.tree["params"]
