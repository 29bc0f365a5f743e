"""Control experiment: the string task with rewards permuted within each group, so that they carry no information.

The sizes of the updates do not change. Any gain of this run is therefore not due to the rewards.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import rewards

config = dataclasses.replace(strings.config, run=Path("runs/control"), reward_map=rewards.permute_within_group)
