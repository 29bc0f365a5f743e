"""Rollouts: prompts in, sampled completions and their verified rewards out."""

import dataclasses
import decimal
import functools
import inspect
import math
import numbers
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rljax.models import Model
from rljax.objective import Rollouts
from rljax.rollout import Samples, SamplingConfig, check_left_padded, generate
from rljax.tasks import Problem, TaskData
from rljax.training.components import Components
from rljax.training.errors import RunError
from rljax.training.placement import to_host


class Drawn(NamedTuple):
    """A completion of each row, in NumPy and whole on every process."""

    samples: Samples
    texts: list[str]
    """Without their stop tokens."""
    components: np.ndarray
    """[R, K] float32: the numbers that the reward function returns, of which the reward is the sum."""

    @property
    def rewards(self) -> np.ndarray:
        """[R] float32."""
        return self.components.sum(axis=1)

    @property
    def finished(self) -> np.ndarray:
        """[R] bool: False for a completion that was cut at its budget."""
        return np.asarray(self.samples.finished)

    @property
    def lengths(self) -> np.ndarray:
        """[R] tokens of each completion, its stop token included."""
        return np.asarray(self.samples.mask).sum(axis=1)


@functools.lru_cache(maxsize=16)
def _sampling_program(model: Model, config: SamplingConfig, stop_ids: tuple, banned: tuple) -> Callable:
    """Compiled once for each shape of prompts, whoever asks for it."""
    return jax.jit(functools.partial(generate, model, config=config, stop_ids=stop_ids, banned=banned))


def draw(
    parts: Components,
    sampling: SamplingConfig,
    params,
    rows: dict,
    problems: Sequence[Problem],
    key,
    *,
    cut_reward: float | None = None,
) -> Drawn:
    """A completion of each row of left-padded prompts, verified.

    `rows` holds `tokens` and `segment_ids`, `[R, L]`; `problems` are theirs, in order. Rows beyond the problems are
    there for the shape: they have no text and no reward. `cut_reward` is as in `verify`.
    """
    check_left_padded(rows["segment_ids"])
    run = _sampling_program(parts.model, sampling, parts.data.stop_ids, parts.data.banned_ids)
    prompts = parts.rows_to_devices((rows["tokens"], rows["segment_ids"]))
    samples = to_host(run(params, *prompts, key))
    texts = completions(samples, rows["tokens"].shape[1], parts.data)[: len(problems)]
    unrewarded = Drawn(samples, texts, np.zeros((len(texts), 1), np.float32))
    return unrewarded._replace(components=verify(problems, unrewarded, parts.data, cut_reward=cut_reward))


def completions(samples: Any, prompt_length: int, data: TaskData) -> list[str]:
    """The text of each completion, without its stop token."""
    tokens, mask = samples.tokens[:, prompt_length:], samples.mask[:, prompt_length:]
    counts = mask.sum(axis=1) - samples.finished
    return [data.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, counts, strict=True)]


def verify(problems: Sequence[Problem], drawn: Drawn, data: TaskData, *, cut_reward: float | None = None) -> np.ndarray:
    """Rewards [R, K], float32, by the task's reward function, which judges the text of a cut completion too.

    K is 1, or the number of rewards if the function returns a tuple or list of them; then the reward is their sum. If
    `cut_reward` is given, completions that were cut have that reward instead. Each process verifies its share and
    all learn every reward, so a reward function that is slow, or not quite deterministic, leaves the processes in
    agreement. Raises RunError, naming prompt, text and answer, if the function raises, or returns anything
    but finite numbers, always as many.
    """
    finished, lengths = drawn.finished, drawn.lengths
    judged: dict[int, tuple[float, ...]] = {}
    for i in range(jax.process_index(), len(drawn.texts), jax.process_count()):
        if cut_reward is None or finished[i]:
            about = {"finished": bool(finished[i]), "length": int(lengths[i]), "info": problems[i].info}
            judged[i] = _reward(problems[i], drawn.texts[i], data, about)
    width = max(map(len, judged.values()), default=1)
    if jax.process_count() > 1:
        width = int(np.max(multihost_utils.process_allgather(np.int32(width))))
    earned = np.zeros((len(drawn.texts), width), np.float32)
    for i, found in judged.items():
        if len(found) != width:
            raise RunError(f"{_call(problems[i], drawn.texts[i])} = {found}: expected {width} numbers, as for other "
                           "completions")  # fmt: skip
        earned[i] = found
    if jax.process_count() > 1:
        earned = np.asarray(multihost_utils.process_allgather(earned)).sum(axis=0)
    if cut_reward is not None:
        earned[~finished[: len(earned)], 0] = cut_reward
    if not np.isfinite(earned).all():
        i = int(np.argwhere(~np.isfinite(earned))[0, 0])
        shown = earned[i].tolist() if width > 1 else earned[i, 0]
        raise RunError(f"{_call(problems[i], drawn.texts[i])} = {shown}: expected a finite number")
    return earned


def _reward(problem: Problem, text: str, data: TaskData, about: dict[str, Any]) -> tuple[float, ...]:
    try:
        reward = given(data.reward, about)(problem.prompt, text, problem.answer)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"{_call(problem, text)} raised {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno}). It must give a number for any text"
        ) from error
    found = tuple(map(_number, reward)) if isinstance(reward, tuple | list) else (_number(reward),)
    if not found or None in found:
        how = "write `return` with a number on every path" if reward is None else "return one, or a tuple of them"
        raise RunError(f"{_call(problem, text)} = {reward!r}: expected a number, such as 1.0 for a right completion "
                       f"and 0.0 for a wrong one; {how}")  # fmt: skip
    return found  # pyright: ignore[reportReturnType]


def _call(problem: Problem, text: str) -> str:
    return f"reward({problem.prompt!r}, {text!r}, {problem.answer!r})"


def _number(value: Any) -> float | None:
    """A real number, or an array that holds one, as a float; True is 1. None for anything else."""
    if hasattr(value, "shape") and math.prod(value.shape) == 1:
        value = value.item()
    return float(value) if isinstance(value, numbers.Real | decimal.Decimal) else None


def given(function: Callable, offered: dict[str, Any]) -> Callable:
    """The function with those of `offered` bound that it has as keyword-only parameters.

    One with a default is given too; one that `functools.partial` has bound is left.

    >>> given(lambda text, *, length: (text, length), {"length": 3, "finished": True})("abc")
    ('abc', 3)
    """
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return functools.partial(function, **{name: offered[name] for name in _keyword_only(function) & offered.keys()
                                          if name not in bound})  # fmt: skip


def _keyword_only(function: Callable) -> frozenset[str]:
    """Names of the keyword-only parameters; none if the function, as some of C's, does not tell them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def repeated(rows: dict[str, np.ndarray], times: int) -> dict[str, np.ndarray]:
    """Each row so many times, one after the other."""
    return {name: np.repeat(rows[name], times, axis=0) for name in ("tokens", "segment_ids")}


def rollouts_of(drawn: Drawn, task: np.ndarray) -> Rollouts:
    """The completions of P prompts as `[P, G, T]`, with rewards `[P, G]` and the prompts' `task` [P]."""
    samples: Any = drawn.samples
    rollouts = Rollouts(
        tokens=samples.tokens,
        mask=samples.mask,
        rewards=drawn.rewards,  # pyright: ignore[reportArgumentType]
        old_logp=samples.old_logp,
        segment_ids=samples.segment_ids,
        sampled_logp=samples.sampled_logp,
        components=drawn.components,  # pyright: ignore[reportArgumentType]
    )
    grouped = jax.tree.map(lambda x: x.reshape(len(task), -1, *x.shape[1:]), rollouts)
    return dataclasses.replace(grouped, task=task)


def without_cut(rollouts: Rollouts, finished: np.ndarray) -> Rollouts:
    """Overlong filtering: the mask is false on completions that were cut at their budget, `finished` [P·G] false.

    They are then absent: from their group's baseline, from the loss and from its denominators.
    """
    return dataclasses.replace(rollouts, mask=rollouts.mask & finished.reshape(*rollouts.mask.shape[:2], 1))


def with_signal_first(rollouts: Rollouts, signal: np.ndarray, groups: int) -> Rollouts:
    """The first `groups` groups, those with a signal [P] before the others, in order; the others are masked out.

    For baselines that come from the group. A group of equal rewards has advantage 0 there, so it teaches nothing, but
    under a token mean it would still dilute the weights of the rest: it is absent instead (DAPO's dynamic sampling,
    within one rollout).
    """
    kept = np.argsort(~signal, kind="stable")[:groups]
    rollouts = jax.tree.map(lambda x: x[kept], rollouts)
    return dataclasses.replace(rollouts, mask=rollouts.mask & signal[kept][:, None, None])
