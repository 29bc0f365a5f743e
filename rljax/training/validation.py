"""Checks of a config against the devices and the task's data."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from rljax._checks import check
from rljax.tasks import Problem
from rljax.training.config import Config
from rljax.training.held_out import HeldOut


class LeftOut(NamedTuple):
    """Number of problems that are left out because they are too long."""

    count: int
    total: int
    """Problems of this kind, including those left out."""
    limit: str
    """The field that limits their length, with its value."""


def check_rows(config: Config, mesh: Mesh) -> None:
    """Raises ValueError if the rows of a step do not divide evenly over the mesh."""
    shards, rollout = config.sharding.row_shards(mesh), config.rollout
    trained = "(rollout.train_groups or .prompts) × .completions / (.minibatches × .microbatches)"
    rows = {
        "rollout.prompts × rollout.completions": rollout.prompts * rollout.completions,
        trained: rollout.microbatch_rows,
        "evaluation.batch": config.evaluation.batch,
    }
    if "greedy_rewards" in config.needs:
        rows["rollout.prompts"] = rollout.prompts
    if config.likelihood.steps:
        rows["likelihood.rows / .microbatches"] = config.likelihood.rows // config.likelihood.microbatches
    axes = " × ".join(f"mesh.{axis}" for axis in config.sharding.rows)
    for argument, count in rows.items():
        check(count % shards == 0, argument, count, f"a multiple of {axes} = {shards}")


def fitting_prompts(config: Config, lengths: Sequence[int], prompts: Sequence[Problem]) -> list[int]:
    """Indices of the prompts, of `lengths` tokens, that are not longer than rollout.prompt_length.

    Raises ValueError if every prompt is longer, or if one is and rollout.leave_out_long is False.
    """
    limit = config.rollout.prompt_length
    fitting = [i for i, length in enumerate(lengths) if length <= limit]
    if len(fitting) == len(lengths) or (fitting and config.rollout.leave_out_long):
        return fitting
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    other = ", or leave out longer prompts with rollout.leave_out_long" if fitting else ""
    raise ValueError(f"rollout.prompt_length = {limit}: expected at least the {lengths[longest]} tokens of the prompt "
                     f"{prompts[longest].prompt!r} (the shortest prompt has {min(lengths)}); raise the "
                     f"limit{other}")  # fmt: skip


def fitting_held_out(
    config: Config, held_out: HeldOut, levels: Mapping[str, Sequence[Problem]]
) -> dict[str, list[Problem]]:
    """The held-out problems by level, without those whose prompt and completion do not fit in model.max_length.

    Raises ValueError if no problem of a level fits, or if one does not fit and rollout.leave_out_long is False.
    """
    limit, found = config.model.max_length, {}
    for level, problems in levels.items():
        solvable = [p for p in problems if held_out.shape([p])[1] <= limit - config.rollout.prompt_length]
        budget = held_out.shape(solvable)[1]  # the completions of a level share one budget
        fitting = [p for p in solvable if held_out.shape([p])[0] <= limit - budget]
        columns, budget = held_out.shape(problems)
        complete = len(fitting) == len(problems) or (len(fitting) > 0 and config.rollout.leave_out_long)
        check(complete, "model.max_length", limit,
              f"at least {columns} + {budget} tokens, for the held-out problems of {level!r}")  # fmt: skip
        found[level] = fitting
    return found
