"""The picture of a run's learning curve: `python benchmarks/learning_curve.py RUN docs/learning_curve.png`."""

import sys
from pathlib import Path

from rljax.training.figures import learning_curve
from rljax.training.metrics_log import read

if __name__ == "__main__":
    run, picture = map(Path, sys.argv[1:])
    print(learning_curve(read(run), picture))
