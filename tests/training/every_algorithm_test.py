import dataclasses

import numpy as np
import pytest

from rljax.objective import required_fields
from rljax.tasks import StringsTask
from rljax.training import CriticConfig
from tests.examples import ALGORITHMS, make
from tests.training.in_process import train
from tests.training.subprocesses import metrics
from tests.training.tiny import config

pytestmark = [pytest.mark.standard_promotion, pytest.mark.filterwarnings("ignore:Sharding info not provided")]


def supplied(name) -> frozenset[str]:
    """Fields that the algorithm requires in addition to rewards and log-probabilities."""
    algorithm = make(name)
    return required_fields(algorithm.advantage) | required_fields(algorithm.ratio)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if supplied(name) else [pytest.mark.slow]) for name in ALGORITHMS]
)
def test_three_steps(name, data, tmp_path):
    algorithm = make(name)
    run = tmp_path / "run"
    of_name = dataclasses.replace(
        config,
        run=run,
        steps=3,
        algorithm=algorithm,
        task=StringsTask(demonstrations=400, prompts=200, problems=8, data_dir=data),
        likelihood=dataclasses.replace(config.likelihood, steps=0),
        checkpoint_every=0,
        critic=CriticConfig(coefficient=0.0),  # so that grad_norm below is the policy's
    )
    train(of_name)
    rows = metrics(run, "rl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert all(row["grad_norm"] > 1e-4 for row in rows)
