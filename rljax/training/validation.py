"""Checks of a config against the devices and the task's data."""

from collections.abc import Sequence

from jax.sharding import Mesh

from rljax._checks import check
from rljax.tasks import Problem, TaskData
from rljax.training.config import Config, RolloutConfig


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


def check_lengths(config: Config, data: TaskData) -> None:
    """Raises ValueError if a held-out problem is longer than the model's maximum length."""
    limit = config.model.max_length
    for level, problems in data.held_out.items():
        columns, budget = evaluation_shape(config.rollout, data, problems)
        check(columns + budget <= limit, "model.max_length", limit,
              f"at least {columns} + {budget} tokens, for the held-out problems of {level!r}")  # fmt: skip


def evaluation_shape(rollout: RolloutConfig, data: TaskData, problems: Sequence[Problem]) -> tuple[int, int]:
    """(prompt columns, new tokens) for held-out problems: the rollout's, or more if the problems are longer."""
    encode = data.tokenizer.encode
    prompt = max((len(encode(problem.prompt)) for problem in problems), default=0)
    solution = max((len(encode(problem.solution)) for problem in problems), default=0) + 2
    return max(rollout.prompt_length, prompt), max(rollout.sampling.max_new_tokens, solution)
