"""The optimizer step of stage 1, maximum likelihood on demonstrations: L = − Σ_t m_t log π(y_t | y_<t) / Σ_t m_t."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from rljax.training.step.accumulation import State, accumulate, apply
from rljax.training.step.scoring import Scorer


def make_update(microbatches: int, scorer: Scorer, optimizer: optax.GradientTransformation):
    """Returns the jitted `update(state, rows) -> (state, metrics)`; rows = {tokens, segment_ids, mask}, each [R, T]."""

    def loss(params, rows):
        hidden = scorer.model.hidden(params, rows["tokens"], rows["segment_ids"])
        stats = scorer.stats(params, hidden, rows["tokens"], rows["mask"])
        sure = jnp.where(rows["mask"], stats.logp > jnp.log(0.5), False)
        return -jnp.sum(rows["weights"] * stats.logp), jnp.sum(jnp.where(sure, rows["weights"], 0.0))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, rows):
        mask = rows["mask"]
        weights = mask.astype(jnp.float32) / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
        rows = {**rows, "weights": weights}
        (value, sure), gradient = accumulate(loss, state.params, rows, microbatches)
        state, norm = apply(optimizer, state, gradient, jnp.any(mask))
        return state, {"loss": value, "confident": sure, "grad_norm": norm}

    return update
