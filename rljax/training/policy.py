"""Stage 2's step: advantages once a rollout, then weights and one gradient an optimizer step."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from rljax import aggregation, metrics, penalty
from rljax.divergence import total_variation
from rljax.logprobs import logps_at, token_kls
from rljax.models import Model
from rljax.objective import Batch, Rollouts, policy_loss
from rljax.training.config import Config
from rljax.training.gradients import State, accumulate, apply
from rljax.training.prepare import Likeliest, Prepared, flat, values_of
from rljax.training.stats import stats_of


def make_batch(algorithm, rollouts: Rollouts, prepared: Prepared) -> Batch:
    """The rows [P·G, T] of one optimizer step, with their weights: a measure over this step's tokens."""
    weights = algorithm.aggregation(rollouts.mask, aggregation.side(prepared.advantages, rollouts.mask))
    return flat(
        Batch(
            mask=rollouts.mask,
            old_logp=rollouts.old_logp,
            advantages=prepared.advantages,
            weights=weights,
            segment_ids=rollouts.segment_ids,
            tokens=rollouts.tokens,
            ref_logp=prepared.ref_logp,
        )
    )


def make_loss(config: Config, model: Model, mesh: Mesh):
    """`loss(params, (batch, prepared), ratio, reference) -> (sum, sums)`: policy, penalty and value loss of some rows.

    `reference` holds parameters where the penalty asks for the exact KL from there.
    """
    temperature, critic, exact = config.rollout.sampling.temperature, config.critic, "kl" in config.needs
    penalty_of: Any = config.penalty

    def penalised(hidden, unembedding, stats, batch: Any, reference):
        if not exact:
            return penalty_of(stats, batch)
        theirs = model.hidden(reference, batch.tokens, batch.segment_ids)
        kl = token_kls(hidden, unembedding, theirs, model.unembedding(reference), batch.mask,
                       temperature=temperature, mesh=mesh)  # fmt: skip
        return penalty_of(stats, batch, kl=kl)

    def moved(hidden, unembedding, logp, batch: Any, likeliest: Likeliest):
        hidden, unembedding, logp = lax.stop_gradient((hidden, unembedding, logp))
        now = logps_at(hidden, unembedding, likeliest.ids, batch.tokens, logp, temperature=temperature)
        return total_variation(now, likeliest.logp)

    def loss(params, rows: tuple[Batch, Prepared], ratio, reference):
        batch, prepared = rows
        assert batch.tokens is not None
        assert batch.segment_ids is not None
        hidden, unembedding = model.hidden(params, batch.tokens, batch.segment_ids), model.unembedding(params)
        stats = stats_of(model, params, hidden, batch.tokens, batch.mask, temperature=temperature, mesh=mesh)
        if prepared.likeliest is not None:
            divergence = moved(hidden, unembedding, stats.logp, batch, prepared.likeliest)
            batch = dataclasses.replace(batch, divergence=divergence)
        value = policy_loss(stats.logp, batch, ratio)
        sums = metrics.policy_sums(lax.stop_gradient(stats.logp), batch, ratio)
        sums = {"policy": sums, "entropy": jnp.sum(stats.entropy)}
        if config.penalty is not None:
            value += penalised(hidden, unembedding, stats, batch, reference)
        if prepared.values is not None and prepared.returns is not None:
            sums["value_loss"] = penalty.value_loss(values_of(model, params, hidden), batch, returns=prepared.returns,
                                                    old_values=prepared.values, limit=critic.limit)  # fmt: skip
            value += critic.coefficient * sums["value_loss"]
        return value, sums

    return loss


def make_update(config: Config, model: Model, mesh: Mesh, optimizer: optax.GradientTransformation):
    """The jitted step `update(state, reference, rollouts, prepared, step) -> state, metrics` on one minibatch."""
    loss = make_loss(config, model, mesh)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, reference, rollouts: Rollouts, prepared: Prepared, step):
        algorithm = config.algorithm_at(step)
        rows = make_batch(algorithm, rollouts, prepared), flat(prepared)
        (value, sums), gradient = accumulate(
            partial(loss, ratio=algorithm.ratio, reference=reference), state.params, rows, config.optimizer.microbatches
        )
        state, norm = apply(optimizer, state, gradient)
        tokens = jnp.maximum(jnp.sum(rollouts.mask), 1)
        critic = {name: sums[name] for name in ("value_loss",) if name in sums}
        return state, {
            "loss": value, "grad_norm": norm, "entropy": sums["entropy"] / tokens, **critic,
            **metrics.policy_summary(sums["policy"]),
        }  # fmt: skip

    return update
