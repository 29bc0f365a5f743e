"""Control experiment of `smollm2.py`: rewards permuted within each group, so that they carry no information."""

import dataclasses
from pathlib import Path

from rljax.configs import smollm2

from rljax import rewards

config = dataclasses.replace(smollm2.config, run=Path("runs/smollm2_control"), reward_map=rewards.permute_within_group)
