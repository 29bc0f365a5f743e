"""Control experiment: the string task with rewards permuted within each group.

The permuted rewards carry no information, but each group keeps its set of advantages. Any gain has other causes.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import rewards

config = dataclasses.replace(strings.config, run=Path("runs/control"), reward_map=rewards.permute_within_group)
