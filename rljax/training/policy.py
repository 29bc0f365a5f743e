"""Stage 2, on the devices: advantages once a rollout, weights once an optimizer step, gradients every microbatch."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh

from rljax import aggregation, metrics
from rljax.logprobs import token_logps
from rljax.models import Model
from rljax.objective import Batch, Rollouts, advantages_of, policy_loss, required_fields
from rljax.training.config import Config
from rljax.training.gradients import State, accumulate, apply


def flat(tree):
    """[P, G, …] as rows [P·G, …]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def make_score(config: Config, model: Model, mesh: Mesh):
    """`score(params, rollouts) -> TokenStats [P, G, T]` at the sampling temperature, a microbatch at a time."""

    def score(params, rollouts: Rollouts):
        rows = flat((rollouts.tokens, rollouts.segment_ids, rollouts.mask))
        parts = max(1, rows[0].shape[0] // (config.rollout.minibatch_rows // config.optimizer.microbatches))

        def part(rows):
            tokens, segment_ids, mask = rows
            hidden = model.hidden(params, tokens, segment_ids)
            return token_logps(hidden, model.unembedding(params), tokens, mask,
                               temperature=config.rollout.sampling.temperature, mesh=mesh)  # fmt: skip

        stats = lax.map(part, jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows))
        return jax.tree.map(lambda x: x.reshape(rollouts.mask.shape), stats)

    return score


def make_prepare(config: Config, model: Model, mesh: Mesh):
    """The jitted `prepare(params, reference, rollouts, step) -> (advantages, ref_logp)`, each [P, G, T].

    The extra passes are made only where something asks: the proxy where the advantage names it, the reference's
    log-probabilities where there is a penalty (else they are None).
    """
    score = make_score(config, model, mesh)

    @jax.jit
    def prepare(params, reference, rollouts: Rollouts, step):
        advantage = config.algorithm_at(step).advantage
        if required_fields(advantage) & {"proxy", "entropy"}:
            stats = score(params, rollouts)
            rollouts = dataclasses.replace(rollouts, proxy=stats.proxy, entropy=stats.entropy)
        ref_logp = None if config.penalty is None else score(reference, rollouts).logp
        return advantages_of(advantage, rollouts), ref_logp

    return prepare


def make_batch(algorithm, rollouts: Rollouts, advantages, ref_logp) -> Batch:
    """The rows [P·G, T] of one optimizer step, with their weights: a measure over this step's tokens."""
    weights = algorithm.aggregation(rollouts.mask, aggregation.side(advantages, rollouts.mask))
    return flat(
        Batch(
            mask=rollouts.mask,
            old_logp=rollouts.old_logp,
            advantages=advantages,
            weights=weights,
            segment_ids=rollouts.segment_ids,
            tokens=rollouts.tokens,
            ref_logp=ref_logp,
        )
    )


def make_update(config: Config, model: Model, mesh: Mesh, optimizer: optax.GradientTransformation):
    """The jitted step `update(state, rollouts, advantages, ref_logp, step) -> state, metrics` on one minibatch."""

    def loss(params, batch: Batch, ratio):
        assert batch.tokens is not None
        assert batch.segment_ids is not None
        hidden = model.hidden(params, batch.tokens, batch.segment_ids)
        stats = token_logps(hidden, model.unembedding(params), batch.tokens, batch.mask,
                            temperature=config.rollout.sampling.temperature, mesh=mesh)  # fmt: skip
        value = policy_loss(stats.logp, batch, ratio)
        if config.penalty is not None:
            value += config.penalty(stats, batch)
        sums = metrics.policy_sums(lax.stop_gradient(stats.logp), batch, ratio)
        return value, (sums, jnp.sum(stats.entropy))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, rollouts: Rollouts, advantages, ref_logp, step):
        algorithm = config.algorithm_at(step)
        batch = make_batch(algorithm, rollouts, advantages, ref_logp)
        (value, (sums, entropy)), gradient = accumulate(
            partial(loss, ratio=algorithm.ratio), state.params, batch, config.optimizer.microbatches
        )
        state, norm = apply(optimizer, state, gradient)
        tokens = jnp.maximum(jnp.sum(batch.mask), 1)
        return state, {
            "loss": value, "grad_norm": norm, "entropy": entropy / tokens, **metrics.policy_summary(sums),
        }  # fmt: skip

    return update
