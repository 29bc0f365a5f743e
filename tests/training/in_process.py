"""Helpers that run the trainer and its commands inside the test process, which saves compilation time."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import jax

from rljax.models import make_mesh
from rljax.training import Config, components
from rljax.training.components import make_components
from rljax.training.report.monitor import Monitor
from rljax.training.run import Run
from rljax.training.stages import Stage


def on_devices(count: int):
    """Restricts runs to the first `count` of the 8 simulated devices, which shortens compilation."""
    return mock.patch.object(components, "make_mesh", partial(make_mesh, devices=jax.devices()[:count]))


class Unevaluated(Run):
    """A run without evaluations, which would take longer than a few training steps."""

    def _evaluate(self, moment: str, params) -> None:
        pass

    def _look(self, stage, n: int) -> None:
        pass


def train(config: Config, kind: type[Run] = Unevaluated, devices: int = 1) -> Stage:
    config.run.mkdir(parents=True, exist_ok=True)
    with on_devices(devices):
        parts = make_components(config)
    with Monitor(config, parts.data.headline) as monitor:
        return kind(config, parts, monitor).train()


def call(command: Callable, *arguments: object, cwd: Path, devices: int = 1) -> tuple[int, str]:
    output, code = io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), contextlib.chdir(cwd):
        try:
            with on_devices(devices):
                command([str(argument) for argument in arguments])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, output.getvalue()
