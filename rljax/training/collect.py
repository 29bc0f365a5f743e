"""Rollouts: prompts in, sampled completions and their verified rewards out."""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from rljax.models import Model
from rljax.objective import Rollouts
from rljax.rollout import Samples, SamplingConfig, generate
from rljax.tasks import Problem, TaskData
from rljax.training.components import Components
from rljax.training.errors import RunError
from rljax.training.placement import to_host


class Drawn(NamedTuple):
    """A completion of each row, in NumPy and whole on every process."""

    samples: Samples
    texts: list[str]
    """Without their stop tokens."""
    rewards: np.ndarray
    """[R] float32."""


@functools.lru_cache(maxsize=16)
def _sampling_program(model: Model, config: SamplingConfig, stop_ids: tuple[int, ...]) -> Callable:
    """Compiled once for each shape of prompts, whoever asks for it."""
    return jax.jit(functools.partial(generate, model, config=config, stop_ids=stop_ids))


def draw(parts: Components, sampling: SamplingConfig, params, rows: dict, problems: Sequence[Problem], key) -> Drawn:
    """A completion of each row of left-padded prompts, verified.

    `rows` holds `tokens` and `segment_ids`, `[R, L]`; `problems` are theirs, in order. Rows beyond the problems are
    there for the shape: they have no text and no reward.
    """
    run = _sampling_program(parts.model, sampling, parts.data.stop_ids)
    prompts = parts.rows_to_devices((rows["tokens"], rows["segment_ids"]))
    samples = to_host(run(params, *prompts, key))
    texts = completions(samples, rows["tokens"].shape[1], parts.data)[: len(problems)]
    return Drawn(samples, texts, verify(problems, texts, samples.finished, parts.data))


def completions(samples: Any, prompt_length: int, data: TaskData) -> list[str]:
    """The text of each completion, without its stop token."""
    tokens, mask = samples.tokens[:, prompt_length:], samples.mask[:, prompt_length:]
    counts = mask.sum(axis=1) - samples.finished
    return [data.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, counts, strict=True)]


def verify(problems: Sequence[Problem], texts: Sequence[str], finished: np.ndarray, data: TaskData) -> np.ndarray:
    """Rewards [R], float32. A completion that did not stop within its budget is malformed: 0.

    Each process verifies its share and all learn every reward, so a reward function that is slow, or not quite
    deterministic, leaves the processes in agreement.
    """
    earned = np.zeros(len(texts), np.float32)
    for i in range(jax.process_index(), len(texts), jax.process_count()):
        if finished[i]:
            earned[i] = _reward(problems[i], texts[i], data)
    if jax.process_count() > 1:
        earned = np.asarray(multihost_utils.process_allgather(earned)).sum(axis=0)
    if not np.isfinite(earned).all():
        i = int(np.flatnonzero(~np.isfinite(earned))[0])
        raise RunError(f"reward({problems[i].prompt!r}, {texts[i]!r}, {problems[i].answer!r}) = {earned[i]}: "
                         "expected a finite number")  # fmt: skip
    return earned


def _reward(problem: Problem, text: str, data: TaskData) -> float:
    try:
        return float(data.reward(problem.prompt, text, problem.answer))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"reward({problem.prompt!r}, {text!r}, {problem.answer!r}) raised {type(error).__name__}: {error} "
            f"({where.filename}, line {where.lineno}). It must give a number for any text"
        ) from error


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
    )
    grouped = jax.tree.map(lambda x: x.reshape(len(task), -1, *x.shape[1:]), rollouts)
    return dataclasses.replace(grouped, task=task)


def with_signal_first(rollouts: Rollouts, signal: np.ndarray, groups: int) -> Rollouts:
    """The first `groups` groups, those with a signal [P] before the others, in order; the others are masked out.

    For baselines that come from the group. A group of equal rewards has advantage 0 there, so it teaches nothing, but
    under a token mean it would still dilute the weights of the rest: it is absent instead (DAPO's dynamic sampling,
    within one rollout).
    """
    kept = np.argsort(~signal, kind="stable")[:groups]
    rollouts = jax.tree.map(lambda x: x[kept], rollouts)
    return dataclasses.replace(rollouts, mask=rollouts.mask & signal[kept][:, None, None])
