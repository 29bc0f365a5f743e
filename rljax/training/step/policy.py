"""The optimizer step of stage 2 on one minibatch, and the metrics of a rollout."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rljax import metrics, penalty
from rljax.objective import PolicyGradient, earns, policy_loss, weighted_batch
from rljax.training.config import Config
from rljax.training.step.accumulation import State, accumulate, apply
from rljax.training.step.scoring import Extra, Prepared, Scorer, flat, last_columns


def make_loss(config: Config, scorer: Scorer):
    """Returns `loss(params, (batch, extra), ratio, reference) -> (sum, sums)`: policy, penalty and value loss of rows.

    `reference` holds the reference parameters if the penalty requires `kl`, else None.
    """
    penalty_of, own = config.penalty, config.rollout.optimizer_steps == 1

    def loss(params, rows: tuple[Any, Extra], ratio, reference):
        inputs = rows[0].tokens, rows[0].segment_ids
        hidden = scorer.hidden(params, *inputs)
        batch, extra = last_columns(rows, hidden.shape[1])
        stats = scorer.stats(params, hidden, batch.tokens, batch.mask)
        if own and config.rollout.rescores(hidden.dtype):  # in the rollout's only step, π_old = π_θ
            old_logp = lax.stop_gradient(stats.logp)
            batch = dataclasses.replace(batch, old_logp=old_logp, divergence=jnp.zeros_like(old_logp))
        elif extra.likeliest is not None:
            constant = lax.stop_gradient((params, hidden, batch.tokens, stats.logp))
            batch = dataclasses.replace(batch, divergence=scorer.divergence(*constant, extra.likeliest))
        value = policy_loss(stats.logp, batch, ratio)
        sums = {
            "policy": metrics.policy_sums(lax.stop_gradient(stats.logp), batch, ratio),
            "entropy": jnp.sum(stats.entropy),
        }
        if penalty_of is not None:
            exact = "kl" in config.needs
            theirs = (reference, *inputs, batch.mask)
            value += penalty_of(stats, batch, **({"kl": scorer.kl(params, hidden, *theirs)} if exact else {}))
        if extra.values is not None and extra.returns is not None:
            sums["value_loss"] = penalty.value_loss(scorer.values(params, hidden), batch, returns=extra.returns,
                                                    old_values=extra.values, limit=config.critic.limit)  # fmt: skip
            value += config.critic.coefficient * sums["value_loss"]
        return value, sums

    return loss


def make_update(config: Config, scorer: Scorer, optimizer: optax.GradientTransformation):
    """Returns the jitted `update(state, reference, prepared, algorithm) -> (state, sums)` for one minibatch.

    The step is skipped if the minibatch has no tokens, or if w·A = 0 at every token and there is neither a penalty nor
    a critic. A skipped step changes neither the parameters nor the optimizer state. `summarize` takes the sums.
    Microbatches without tokens are not computed.
    """
    loss = make_loss(config, scorer)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, reference, prepared: Prepared, algorithm: PolicyGradient):
        batch = weighted_batch(algorithm.aggregation, prepared.rollouts, prepared.advantages)
        rows = flat((batch, prepared.extra))
        of_rows = partial(loss, ratio=algorithm.ratio, reference=reference)
        present = jnp.any(rows[0].mask, axis=-1)
        (value, sums), gradient = accumulate(
            of_rows, state.params, rows, config.rollout.microbatches, present, scorer.unit
        )
        more = config.penalty is not None or prepared.extra.returns is not None
        taken = jnp.any(batch.mask if more else earns(batch))
        state, norm = apply(optimizer, state, gradient, taken)
        return state, {"loss": value, "grad_norm": norm, "taken": taken.astype(norm.dtype), **sums}

    return update


@jax.jit
def summarize(steps: Sequence[dict]) -> dict[str, jax.Array]:
    """Metrics of a rollout from the sums of its optimizer steps; a mean of no values is NaN.

    `loss` and `value_loss` are sums over steps; `grad_norm` is a mean over the steps taken; `entropy` is a mean over
    tokens. `mismatch` = √(2 · mean k3) is approximately the root mean square, in nats, of ℓ in the first step, where ℓ
    is only rounding error.
    """
    total, first = jax.tree.map(lambda *parts: sum(parts), *steps), metrics.policy_summary(steps[0]["policy"])
    return {
        **{name: total[name] for name in ("loss", "value_loss") if name in total},
        "grad_norm": total["grad_norm"] / total["taken"],
        "optimizer_steps": total["taken"],
        "skipped_steps": len(steps) - total["taken"],
        "entropy": total["entropy"] / total["policy"]["tokens"],
        "mismatch": jnp.sqrt(2 * jnp.maximum(first["kl"], 0)),
        **metrics.policy_summary(total["policy"]),
    }
