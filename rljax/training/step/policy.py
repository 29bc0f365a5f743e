"""Stage 2's optimizer step: weights over the whole step, one gradient, one update."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rljax import aggregation, metrics, penalty
from rljax.objective import Batch, Rollouts, policy_loss
from rljax.training.config import Config
from rljax.training.step.accumulation import State, accumulate, apply
from rljax.training.step.scoring import Prepared, Scorer, flat


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


def make_loss(config: Config, scorer: Scorer):
    """`loss(params, (batch, prepared), ratio, reference) -> (sum, sums)`: policy, penalty and value loss of some rows.

    `reference` holds parameters if the penalty asks for the exact KL from there.
    """
    critic, penalty_of = config.critic, config.penalty

    def loss(params, rows: tuple[Any, Prepared], ratio, reference):
        batch, prepared = rows
        hidden = scorer.model.hidden(params, batch.tokens, batch.segment_ids)
        stats = scorer.stats(params, hidden, batch.tokens, batch.mask)
        if prepared.likeliest is not None:
            constant = lax.stop_gradient((params, hidden, batch.tokens, stats.logp))
            batch = dataclasses.replace(batch, divergence=scorer.divergence(*constant, prepared.likeliest))
        value = policy_loss(stats.logp, batch, ratio)
        sums = {
            "policy": metrics.policy_sums(lax.stop_gradient(stats.logp), batch, ratio),
            "entropy": jnp.sum(stats.entropy),
        }
        if penalty_of is not None:
            exact = "kl" in config.needs
            rows_of = (reference, batch.tokens, batch.segment_ids, batch.mask)
            value += penalty_of(stats, batch, **({"kl": scorer.kl(params, hidden, *rows_of)} if exact else {}))
        if prepared.values is not None and prepared.returns is not None:
            sums["value_loss"] = penalty.value_loss(scorer.values(params, hidden), batch, returns=prepared.returns,
                                                    old_values=prepared.values, limit=critic.limit)  # fmt: skip
            value += critic.coefficient * sums["value_loss"]
        return value, sums

    return loss


def make_update(config: Config, scorer: Scorer, optimizer: optax.GradientTransformation):
    """The jitted step `update(state, reference, rollouts, prepared, step) -> state, metrics` on one minibatch."""
    loss = make_loss(config, scorer)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, reference, rollouts: Rollouts, prepared: Prepared, step):
        algorithm = config.algorithm_at(step)
        rows = make_batch(algorithm, rollouts, prepared), flat(prepared)
        of_rows = partial(loss, ratio=algorithm.ratio, reference=reference)
        (value, sums), gradient = accumulate(of_rows, state.params, rows, config.rollout.microbatches)
        state, norm = apply(optimizer, state, gradient)
        tokens = jnp.maximum(jnp.sum(rollouts.mask), 1)
        critic = {name: sums[name] for name in ("value_loss",) if name in sums}
        return state, {
            "loss": value, "grad_norm": norm, "entropy": sums["entropy"] / tokens, **critic,
            **metrics.policy_summary(sums["policy"]),
        }  # fmt: skip

    return update
