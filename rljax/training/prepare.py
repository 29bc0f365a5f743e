"""What a rollout's optimizer steps share: advantages, and whatever the algorithm and the penalty ask for by name."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh

from pallas_kernels import TokenStats
from rljax.distillation import top_tokens
from rljax.logprobs import delayed, logps_at, preceding
from rljax.models import Model
from rljax.objective import Rollouts, advantages_of
from rljax.training.config import Config
from rljax.training.stats import stats_of

LIKELIEST = 20  # tokens that a divergence is taken over (CPPO's)


def flat(tree):
    """[P, G, …] as rows [P·G, …]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


class Likeliest(NamedTuple):
    """The sampling policy's likeliest tokens at each position, [*B, T, K]."""

    ids: Array
    logp: Array


class Scored(NamedTuple):
    """One pass over the rollout, [P, G, T] each; None where nothing asks for it."""

    stats: TokenStats
    values: Array | None
    """V of the state before each token."""
    likeliest: Likeliest | None


class Prepared(NamedTuple):
    """What the steps read beside the rollout, [P, G, T] each; None where nothing asks for it."""

    advantages: Array
    ref_logp: Array | None
    values: Array | None
    returns: Array | None
    likeliest: Likeliest | None


def values_of(model: Model, params, hidden: Array) -> Array:
    """V of the state before each token, [B, T]."""
    return delayed(model.values(params, hidden))


def make_score(config: Config, model: Model, mesh: Mesh, needs: frozenset[str] = frozenset()):
    """`score(params, rollouts) -> Scored` at the sampling temperature, a microbatch at a time."""
    temperature = config.rollout.sampling.temperature

    def part(params, tokens, segment_ids, mask):
        hidden = model.hidden(params, tokens, segment_ids)
        stats = stats_of(model, params, hidden, tokens, mask, temperature=temperature, mesh=mesh)
        values = values_of(model, params, hidden) if "values" in needs else None
        if "divergence" not in needs:
            return Scored(stats, values, None)
        unembedding = model.unembedding(params)
        ids, _ = top_tokens(preceding(hidden), unembedding, k=min(LIKELIEST, unembedding.shape[0]))
        ids = ids.reshape(*tokens.shape, -1)
        logp = logps_at(hidden, unembedding, ids, tokens, stats.logp, temperature=temperature)
        return Scored(stats, values, Likeliest(ids, logp))

    def score(params, rollouts: Rollouts) -> Scored:
        rows = flat((rollouts.tokens, rollouts.segment_ids, rollouts.mask))
        parts = max(1, rows[0].shape[0] // (config.rollout.minibatch_rows // config.optimizer.microbatches))
        scored = lax.map(
            lambda rows: part(params, *rows), jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
        )
        return jax.tree.map(lambda x: x.reshape(*rollouts.mask.shape, *x.shape[3:]), scored)

    return score


def make_prepare(config: Config, model: Model, mesh: Mesh):
    """The jitted `prepare(params, reference, rollouts, dropping, step) -> (Prepared, dropping)`.

    The extra pass is made only where something asks: the advantage or the ratio by a parameter, or the algorithm's
    hysteresis (whose state `dropping` is). Any penalty is given the reference's log-probabilities, by another pass.
    """
    needs = config.needs
    asked = needs & {"proxy", "entropy", "values", "divergence"}
    score, score_reference = make_score(config, model, mesh, asked), make_score(config, model, mesh)

    @jax.jit
    def prepare(params, reference, rollouts: Rollouts, dropping, step):
        algorithm = config.algorithm_at(step)
        scored = score(params, rollouts) if asked or algorithm.hysteresis else None
        if scored is not None:
            proxy, entropy = scored.stats.proxy, scored.stats.entropy
            rollouts = dataclasses.replace(rollouts, proxy=proxy, entropy=entropy, values=scored.values)
            if algorithm.hysteresis is not None:
                mean = jnp.sum(entropy) / jnp.maximum(jnp.sum(rollouts.mask), 1)
                dropping = algorithm.hysteresis(dropping, mean)
        rollouts = dataclasses.replace(rollouts, dropping=dropping)
        return Prepared(
            advantages=advantages_of(algorithm.advantage, rollouts),
            ref_logp=None if config.penalty is None else score_reference(reference, rollouts).stats.logp,
            values=rollouts.values,
            returns=None if rollouts.values is None else config.critic.returns(rollouts.rewards, rollouts.mask),
            likeliest=scored.likeliest if scored else None,
        ), dropping

    return prepare
