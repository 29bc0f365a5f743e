"""The string task under the optimal token baseline (2602.07078). About 7 minutes on 2 cores.

The baseline's energies come from one more forward pass over each rollout.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/otb"), algorithm=algorithms.otb())
