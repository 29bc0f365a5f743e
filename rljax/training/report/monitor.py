"""Recording and display of a run: progress, metrics, evaluations and report."""

import importlib.metadata
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from rljax.training.checkpoint.folder import read_json, write_json
from rljax.training.config import Config
from rljax.training.description import describe
from rljax.training.report.collapse import collapses
from rljax.training.report.metrics_log import MetricsLog, read
from rljax.training.report.page import write_report
from rljax.training.report.progress import Progress
from rljax.training.validation import LeftOut

_PACKAGES = (
    "rljax-llm",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "sentencepiece",
)
_OPTIONAL = ("safetensors", "tokenizers", "reasoning-gym")  # of the extras `hf` and `gym`; shown if installed
_REPORT_EVERY = 30  # seconds
LEFT_OUT = "left_out.json"


def _versions() -> dict[str, str]:
    found = {package: _version(package) for package in (*_PACKAGES, *_OPTIONAL)}
    return {
        package: version or "not installed" for package, version in found.items() if version or package in _PACKAGES
    }


def _version(package: str) -> str:
    """The version of a package; empty if it is not installed, as a checkout on the Python path under Bazel."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


class Monitor:
    """Records and displays a run; does nothing on processes other than 0. `headline` is the level to show first."""

    def __init__(self, config: Config, headline: str | None):
        self.config, self.headline, self.folder = config, headline, config.run
        self.writes = jax.process_index() == 0
        totals = {"likelihood": config.likelihood.steps if config.start_from is None else 0, "rl": config.steps}
        totals = {stage: total for stage, total in totals.items() if total}
        self.progress = Progress(totals, headline=headline, enabled=self.writes)
        self._log: MetricsLog | None = None
        self._looks: set[int] = set()
        self._rollouts: list[dict] = []  # rows of stage 2
        self._warned: set[str] = set()
        self._reported = -math.inf

    def __enter__(self):
        self.progress.__enter__()
        return self

    def __exit__(self, *error):
        self.progress.__exit__(*error)
        if self._log is not None:
            self._log.close()

    def begin(self) -> None:
        """Opens the log of a run without a checkpoint and deletes the rows and counts of an earlier attempt."""
        if self.writes:
            (self.folder / LEFT_OUT).unlink(missing_ok=True)
        self._open({"likelihood": 0, "rl": 0, "eval": 0})

    def resume(self, stage: str, step: int) -> None:
        """Opens the log of a resumed run and deletes the rows of the steps that will run again."""
        self._open(
            {"likelihood": step, "rl": 0, "eval": 0} if stage == "likelihood" else {"rl": step, "eval": step + 1}
        )

    def _open(self, kept: dict[str, int]) -> None:
        if self.writes:
            self._log = MetricsLog(self.folder, tensorboard=self.config.tensorboard, resume_from=kept)
            rows = read(self.folder)
            self._looks = {row["step"] for row in rows if row["phase"] == "eval"}
            self._rollouts = [row for row in rows if row["phase"] == "rl"]

    def step(self, stage: str, step: int, metrics: dict) -> None:
        if self._log is not None:
            self._log.write(stage, step, metrics)
            self.progress.update(stage, step, metrics)
            if stage == "rl":
                self._warn(metrics)

    def _warn(self, metrics: dict) -> None:
        """Prints one warning per metric of stage 2 that has collapsed."""
        self._rollouts.append(metrics)
        for name, warning in collapses(self._rollouts).items():
            if name not in self._warned:
                self._warned.add(name)
                self.say(f"warning: {warning}")

    def looked_at(self, step: int) -> bool:
        """True if the quick evaluation before rollout `step` was already recorded, before an interruption."""
        return bool(multihost_utils.broadcast_one_to_all(np.int32(step in self._looks)))  # equal on every process

    def look(self, step: int, accuracy: dict[str, float], reward: dict[str, float], more: dict[str, float]) -> None:
        """Records the quick evaluation before rollout `step`: accuracy and mean reward per level, and more metrics."""
        if self._log is not None:
            self._log.write("eval", step, {"accuracy": accuracy, "reward": reward, **more})
            self.progress.update("eval", step, {"accuracy": accuracy})
            differ = {level: f" (reward {reward[level]:.3f})" for level in reward if reward[level] != accuracy[level]}
            shown = "  ".join(f"{level} {value:.3f}{differ.get(level, '')}" for level, value in accuracy.items())
            self.progress.say(f"held-out accuracy after {step} rollout{'s' * (step != 1)}: {shown}")

    def evaluated(self, name: str, figures: dict) -> None:
        if self.writes:
            path = self.folder / "evaluations.json"
            write_json(path, {**read_json(path, {}), name: figures})

    def samples(self, moment: str, samples: list[dict]) -> None:
        """Records completions for the report; `moment` is "start" or "end" (of stage 2), or "latest" during stage 2."""
        if self.writes and samples:
            path = self.folder / "samples.json"
            start = {name: drawn for name, drawn in read_json(path, {}).items() if name == "start"}
            write_json(path, {**start, moment: samples})

    def left_out(self, counts: Mapping[str, LeftOut]) -> None:
        """Prints and records the numbers of problems, by kind, that a stage leaves out because they are too long."""
        if self.writes:
            path = self.folder / LEFT_OUT
            write_json(path, {**read_json(path, {}), **{kind: found._asdict() for kind, found in counts.items()}})
        for kind, found in counts.items():
            if found.count:
                self.say(f"left out {found.count} of {found.total} {kind}, which are longer than {found.limit} allows")

    def say(self, text: str) -> None:
        self.progress.say(text)

    def refresh(self, status: str) -> None:
        """Writes the report if the last one is older than 30 seconds."""
        if time.monotonic() - self._reported >= _REPORT_EVERY:
            self.report(status)

    def report(self, status: str) -> Path:
        """Writes the report of what has been recorded so far; returns its path."""
        path = self.folder / "report.html"
        if self.writes:
            self._reported = time.monotonic()
            device = jax.devices()[0]
            write_report(
                self.folder,
                config=describe(self.config),
                versions={"python": platform.python_version(), **_versions()},
                device=f"{jax.device_count()} × {device.device_kind} ({device.platform}), "
                f"{jax.process_count()} process(es), {os.cpu_count()} cores on this host",
                metrics=read(self.folder),
                evaluations=read_json(self.folder / "evaluations.json", {}),
                samples=read_json(self.folder / "samples.json", {}),
                status=status,
                headline=self.headline,
                left_out=read_json(self.folder / LEFT_OUT, {}),
            )
        return path

    def finish(self) -> Path:
        """Writes the report, marks the run as finished, and returns the report's path."""
        path = self.report("finished")
        if self.writes:  # last, because a finished run is not resumed
            write_json(self.folder / "finished.json", {"steps": self.config.steps})
        return path
