"""The control: the string task with its rewards permuted within each group, so that they carry no information.

Groups, and so the size of the updates, stay as they are: what this run gains is not due to the reward.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import rewards

config = dataclasses.replace(strings.config, run=Path("runs/control"), reward_map=rewards.permute_within_group)
