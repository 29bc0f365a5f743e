"""Rollouts: prompts in, sampled completions and their verified rewards out."""

import dataclasses
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from rljax import rewards
from rljax.models import Model
from rljax.objective import Rollouts
from rljax.rollout import Samples, SamplingConfig, generate
from rljax.tasks import Problem, TaskData
from rljax.training.checkpoint import RunError
from rljax.training.mesh import to_devices, to_host


class Sampler(NamedTuple):
    """Samples rows of prompts on the mesh: host arrays in, host arrays out."""

    run: Callable
    mesh: Mesh

    def __call__(self, params, tokens: np.ndarray, segment_ids: np.ndarray, key) -> Any:
        """`Samples` in NumPy: completions of the left-padded prompts `[R, L]`, whole on every process."""
        prompts = to_devices((tokens, segment_ids), self.mesh)
        return to_host(self.run(params, *prompts, key))


def make_sampler(model: Model, mesh: Mesh, config: SamplingConfig) -> Sampler:
    """A sampler compiled once for each shape of prompts."""

    def run(params, tokens, segment_ids, key):
        return generate(model, params, tokens, segment_ids, key, config)

    return Sampler(jax.jit(run), mesh)


def completions(samples: Samples, prompt_length: int, data: TaskData) -> list[str]:
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


class Collected(NamedTuple):
    """One rollout on the host: the arrays, and the texts a person reads."""

    rollouts: Rollouts
    problems: list[Problem]
    texts: list[str]
    finished: np.ndarray


def collect(sampler: Sampler, params, prompts: dict, problems: Sequence[Problem], data: TaskData, group: int, key):
    """`group` completions of each prompt: Rollouts `[P, G, T]` with rewards `[P, G]`.

    `prompts` holds left-padded `tokens` and `segment_ids`, `[P, L]`; `problems` are theirs, in order. A prompt's task
    is its level.
    """
    rows = {name: np.repeat(prompts[name], group, axis=0) for name in ("tokens", "segment_ids")}
    asked = [problem for problem in problems for _ in range(group)]
    samples, texts, rewarded = _sampled(sampler, params, rows, asked, data, key)
    rollouts = Rollouts(
        tokens=samples.tokens,
        mask=samples.mask,
        rewards=rewarded,
        old_logp=samples.old_logp,
        segment_ids=samples.segment_ids,
        sampled_logp=samples.sampled_logp,
    )
    levels = sorted({problem.level for problem in data.prompts})
    task: Any = np.array([levels.index(problem.level) for problem in problems], np.int32)
    grouped = jax.tree.map(lambda x: x.reshape(len(problems), group, *x.shape[1:]), rollouts)
    return Collected(dataclasses.replace(grouped, task=task), asked, texts, samples.finished)


def greedy_rewards(sampler: Sampler, params, prompts: dict, problems: Sequence[Problem], data: TaskData, key):
    """The reward [P] of each prompt's completion by a greedy sampler."""
    return _sampled(sampler, params, prompts, problems, data, key)[2]


def _sampled(sampler: Sampler, params, rows: dict, problems: Sequence[Problem], data: TaskData, key) -> tuple[Any, ...]:
    """(samples, texts, rewards) of a completion of each row."""
    samples: Any = sampler(params, rows["tokens"], rows["segment_ids"], key)
    texts = completions(samples, rows["tokens"].shape[1], data)
    return samples, texts, verify(problems, texts, samples.finished, data)


def with_signal_first(rollouts: Rollouts, groups: int) -> Rollouts:
    """The first `groups` groups, those whose rewards differ before the others, in order; the others are masked out.

    For baselines that come from the group. There one of equal rewards has advantage 0, so it teaches nothing, but under
    a token mean it would still dilute the weights of the rest: it is absent instead (DAPO's dynamic sampling, within
    one rollout).
    """
    informative = np.asarray(rewards.informative(rollouts.rewards, rollouts.mask))
    kept = np.argsort(~informative, kind="stable")[:groups]
    rollouts = jax.tree.map(lambda x: x[kept], rollouts)
    return dataclasses.replace(rollouts, mask=rollouts.mask & informative[kept][:, None, None])
