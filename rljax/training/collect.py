"""Sampling of completions, their rewards, and the selection of groups to train on."""

import dataclasses
import decimal
import functools
import math
import numbers
import time
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
from rljax.tasks.task import given
from rljax.training.components import Components
from rljax.training.errors import RunError
from rljax.training.placement import to_host


class Drawn(NamedTuple):
    """One completion per row; the NumPy arrays are equal on every process."""

    samples: Samples
    texts: list[str]
    """Text of each completion, without its stop token."""
    components: np.ndarray
    """The numbers that the reward function returned, [R, K] float32; the reward is their sum."""
    seconds_sampling: float = 0.0
    """Time to the arrival of the decoded completions on the host."""
    seconds_verification: float = 0.0
    """Time of the reward function."""

    @property
    def rewards(self) -> np.ndarray:
        return self.components.sum(axis=1)

    @property
    def finished(self) -> np.ndarray:
        """False for a completion that was cut off at its token budget, [R] bool."""
        return np.asarray(self.samples.finished)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens per completion, including the stop token, [R]."""
        return np.asarray(self.samples.mask).sum(axis=1)


@functools.lru_cache(maxsize=16)
def _sampling_program(
    model: Model, config: SamplingConfig, completions: int, stop_ids: tuple, banned: tuple
) -> Callable:
    """The jitted sampler, cached so that training and evaluation share the compiled program."""
    return jax.jit(
        functools.partial(generate, model, config=config, completions=completions, stop_ids=stop_ids, banned=banned)
    )


def draw(
    parts: Components,
    sampling: SamplingConfig,
    params,
    prompts: dict,
    problems: Sequence[Problem],
    key,
    *,
    completions: int = 1,
    cut_reward: float | None = None,
) -> Drawn:
    """Samples completions of left-padded prompts and computes their rewards.

    `prompts` holds `tokens` and `segment_ids`, [P, L]; problem p belongs to prompt p. Prompts after the last problem
    fill the compiled shape; their completions get neither a text nor a reward. The completions of a prompt share one
    forward pass over it, or as few as the row shards allow, which must divide P · `completions`. `cut_reward` is as in
    `verify`.
    """
    check_left_padded(prompts["segment_ids"])
    shards = parts.model.rules.row_shards(parts.mesh)
    times = shards // math.gcd(shards, len(prompts["tokens"]))  # divides `completions` if the rows fill the shards
    arrays = [np.repeat(prompts[name], times, axis=0) for name in ("tokens", "segment_ids")]
    started = time.perf_counter()
    run = _sampling_program(parts.model, sampling, completions // times, parts.data.stop_ids, parts.banned_ids)
    samples = to_host(run(params, *parts.rows_to_devices(arrays), key))
    asked = [problem for problem in problems for _ in range(completions)]
    texts = decoded(samples, prompts["tokens"].shape[1], parts.data)[: len(asked)]
    sampled = time.perf_counter()
    unrewarded = Drawn(samples, texts, np.zeros((len(texts), 1), np.float32))
    components = verify(asked, unrewarded, parts.data, cut_reward=cut_reward)
    return Drawn(samples, texts, components, sampled - started, time.perf_counter() - sampled)


def decoded(samples: Any, prompt_length: int, data: TaskData) -> list[str]:
    tokens, mask = samples.tokens[:, prompt_length:], samples.mask[:, prompt_length:]
    counts = mask.sum(axis=1) - samples.finished
    return [data.tokenizer.decode(row[:n].tolist()) for row, n in zip(tokens, counts, strict=True)]


def verify(problems: Sequence[Problem], drawn: Drawn, data: TaskData, *, cut_reward: float | None = None) -> np.ndarray:
    """Results of the task's reward function, [R, K] float32; K is 1, or the length of the tuple or list it returns.

    With `cut_reward`, completions that were cut off at their token budget get that reward instead. Each process
    computes a share of the rewards and gathers the rest, so processes agree even if the function is not deterministic.
    Raises RunError if the function raises, or if it does not return K finite numbers for every completion.
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
            f"({where.filename}, line {where.lineno}): expected a number for every text"
        ) from error
    found = tuple(map(_number, reward)) if isinstance(reward, tuple | list) else (_number(reward),)
    if not found or None in found:
        how = "; write `return` with a number on every path" if reward is None else ", or a tuple of numbers"
        raise RunError(f"{_call(problem, text)} = {reward!r}: expected a number, such as 1.0 for a correct completion "
                       f"and 0.0 for an incorrect one{how}")  # fmt: skip
    return found  # pyright: ignore[reportReturnType]


def _call(problem: Problem, text: str) -> str:
    return f"reward({problem.prompt!r}, {text!r}, {problem.answer!r})"


def _number(value: Any) -> float | None:
    """Converts a real number, a bool or an array with one number to float; returns None for other values."""
    if hasattr(value, "shape") and math.prod(value.shape) == 1:
        value = value.item()
    return float(value) if isinstance(value, numbers.Real | decimal.Decimal) else None


def rollouts_of(drawn: Drawn, task: np.ndarray) -> Rollouts:
    """Rollouts [P, G, T] of the completions of P prompts; `task` is the prompts' level index, [P]."""
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
    """Masks the completions with False in `finished` [P·G], in the loss, its denominators and the group's baseline."""
    return dataclasses.replace(rollouts, mask=rollouts.mask & finished.reshape(*rollouts.mask.shape[:2], 1))


def with_signal_first(rollouts: Rollouts, signal: np.ndarray, groups: int) -> Rollouts:
    """Selects `groups` groups, those with `signal` [P] first, and masks the selected groups without a signal.

    The tokens of masked groups do not count in the denominators of the loss, as in DAPO's dynamic sampling.
    """
    kept = np.argsort(~signal, kind="stable")[:groups]
    rollouts = jax.tree.map(lambda x: x[kept], rollouts)
    return dataclasses.replace(rollouts, mask=rollouts.mask & signal[kept][:, None, None])
