"""Reward of reasoning-gym tasks: the category's own scorer."""

import contextlib
import dataclasses
import functools
import io
import math
import warnings
from collections.abc import Mapping
from typing import Any

from rljax.tasks.gym.generator import make_dataset

Pairs = tuple[tuple[str, Any], ...]


@functools.cache
def _dataset(name: str, settings: Pairs):
    return make_dataset(name, dict(settings))


@dataclasses.dataclass(frozen=True)
class EntryScore:
    """The reward `score_answer(completion, entry)` of the problem's category, where `entry` is `Problem.info`.

    White space at either end of the completion is removed. Scores are not changed: partial scores count, some scorers
    give a small score to any answer, and scores may be negative. A completion that was cut off at its token budget is
    scored as it is. The reward is 0 if the scorer raises an exception, since many scorers raise on malformed answers,
    or returns NaN or an infinity.
    """

    settings: tuple[tuple[str, Pairs], ...] = ()
    """Settings of the categories, as pairs."""

    def __call__(self, prompt: str, completion: str, answer: str, *, info: Mapping[str, Any]) -> float:
        name = info["metadata"]["source_dataset"]
        dataset = _dataset(name, dict(self.settings).get(name, ()))
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            try:  # some scorers evaluate the completion as an expression, which can print and warn
                score = float(dataset.score_answer(completion.strip(), dict(info)))
            except Exception:
                return 0.0
        return score if math.isfinite(score) else 0.0
