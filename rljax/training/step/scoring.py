"""Log-probabilities of a model's tokens, and the preparation of a rollout for its optimizer steps."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jaxtyping import Float, Int

from pallas_kernels import TokenStats, token_topk
from rljax.carried import advance
from rljax.divergence import total_variation
from rljax.logprobs import delayed, logps_at, preceding, token_kls, token_logps
from rljax.models import Model, PromptSharing
from rljax.objective import PolicyGradient, Rollouts, advantages_of
from rljax.training.config import Config, RolloutConfig
from rljax.training.needs import fields_of_rollouts
from rljax.training.step.accumulation import present_first


class Likeliest(NamedTuple):
    """The K likeliest tokens of the sampling policy at each position, [*B, T, K]."""

    ids: Array
    logp: Array


class SharedPrompt(NamedTuple):
    """A layout of rows: each `rows` consecutive rows have the same prompt, in their first `columns` columns."""

    columns: int
    rows: int


def shared_prompt(rollout: RolloutConfig, shards: int) -> SharedPrompt | None:
    """The largest units of rows with the same prompt that fit into each of the `shards` of a microbatch.

    None if a unit is a single row, whose prompt is not shared.
    """
    rows = math.gcd(rollout.completions, rollout.microbatch_rows // shards)
    return SharedPrompt(rollout.prompt_length, rows) if rows > 1 else None


@dataclasses.dataclass(frozen=True)
class Scorer:
    """π_t = softmax(hidden[t−1] · Wᵀ/τ) of a model at `temperature` τ, from hidden states sharded over `mesh`.

    The logits are soft-capped before the division by τ if the model's head has a soft cap. As in sampling, the softmax
    is over all tokens that are not `banned`. If rows have a `shared` prompt, a model with `PromptSharing` computes it
    once for them, and no prompt token is scored.
    """

    model: Model
    mesh: Mesh
    temperature: float = 1.0
    banned: tuple[int, ...] = ()
    shared: SharedPrompt | None = None

    @property
    def unit(self) -> int:
        """Number of consecutive rows that must stay together, because they have a shared prompt."""
        return self.shared.rows if self.shared else 1

    def hidden(self, params, tokens: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B N D"]:
        """Hidden states of the last N columns: of all T, or from the last column of a `shared` prompt on."""
        if self.shared is None or not isinstance(self.model, PromptSharing):
            return self.model.hidden(params, tokens, segment_ids)
        columns, rows = self.shared
        return self.model.group_hidden(params, tokens, segment_ids, prompt_length=columns, completions=rows)

    def _bias(self, size: int) -> Float[Array, " V"] | None:
        """Bias of `size` logits: −∞ for banned tokens, else 0; None if no token is banned."""
        if not self.banned:
            return None
        return jnp.asarray(np.where(np.isin(np.arange(size), self.banned), -np.inf, 0.0), jnp.float32)

    def stats(self, params, hidden: Float[Array, "B T D"], tokens: Int[Array, "B T"], mask: Array) -> TokenStats:
        """log π_t(tokens[t]), entropy and proxy, each [B, T]; 0 at positions with a False mask."""
        table, vocab_size, split, softcap = self.model.head(params)
        options = {"temperature": self.temperature, "softcap": softcap, "bias": self._bias(table.shape[0])}
        logps = partial(token_logps, **options, vocab_size=vocab_size, mesh=self.mesh, split=split)
        return _compiled(logps)(hidden, table, tokens, mask)

    def values(self, params, hidden: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        """Value of the state before each token."""
        return delayed(self.model.values(params, hidden))

    def likeliest(self, params, hidden, tokens, logp: Float[Array, "B T"], k: int) -> Likeliest:
        """The k likeliest tokens at each position; `logp` is the log-probability of `tokens`."""
        rows, unembedding, softcap = preceding(hidden), self.model.unembedding(params), self.model.head(params).softcap
        size = self.model.vocab_size
        with jax.default_matmul_precision("highest"):
            _, top = token_topk(rows, unembedding, jnp.zeros(len(rows), jnp.int32), k=min(k, size - len(self.banned)),
                                softcap=softcap, bias=self._bias(size), tile=(max(len(rows), 1), 512))  # fmt: skip
        ids = top.ids.reshape(*tokens.shape, -1)
        return Likeliest(ids, self._logps_at(params, hidden, ids, tokens, logp))

    def divergence(self, params, hidden, tokens, logp, likeliest: Likeliest) -> Float[Array, "B T"]:
        """Total variation between π_t and the sampling policy, over `likeliest` and one class for all other tokens."""
        now = self._logps_at(params, hidden, likeliest.ids, tokens, logp)
        return total_variation(now, likeliest.logp)

    def _logps_at(self, params, hidden, ids, tokens, logp) -> Float[Array, "B T K"]:
        options = {"softcap": self.model.head(params).softcap, "bias": self._bias(self.model.vocab_size)}
        unembedding = self.model.unembedding(params)
        return logps_at(hidden, unembedding, ids, tokens, logp, temperature=self.temperature, **options)

    def kl(self, params, hidden, reference, tokens, segment_ids, mask) -> Float[Array, "B T"]:
        """KL(π_t ‖ π_ref) over the whole vocabulary, in nats; π_ref has the parameters `reference`.

        `tokens` and `segment_ids` are the whole rows, and `mask` has the columns of `hidden`.
        """
        theirs = self.hidden(reference, tokens, segment_ids)
        unembeddings = (self.model.unembedding(p) for p in (params, reference))
        options = {"temperature": self.temperature, "softcap": self.model.head(params).softcap,
                   "bias": self._bias(self.model.vocab_size), "mesh": self.mesh}  # fmt: skip
        return _compiled(partial(token_kls, **options))(hidden, next(unembeddings), theirs, next(unembeddings), mask)


def _compiled(function: Callable) -> Callable:
    """Jits the function even under `disable_jit`, since a `shard_map` with custom gradients requires jit."""

    def run(*arrays):
        with jax.disable_jit(False):
            return jax.jit(function)(*arrays)

    return run


def last_columns(rows, count: int):
    """The last `count` columns of every array [B, T, …] of `rows`."""
    return jax.tree.map(lambda x: x[:, -count:], rows)


def flat(tree):
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


class Scored(NamedTuple):
    """Results of a forward pass over the rollout, each [P, G, T]; None if not needed."""

    stats: TokenStats
    values: Array | None
    """Value of the state before each token."""
    likeliest: Likeliest | None


class Extra(NamedTuple):
    """Arrays that an optimizer step needs in addition to its batch, each [P, G, T]; None if not needed."""

    values: Array | None
    returns: Array | None
    likeliest: Likeliest | None


class Prepared(NamedTuple):
    rollouts: Rollouts
    """The rollouts, with every field that the algorithm requires."""
    advantages: Array
    extra: Extra


def make_score(scorer: Scorer, rows: int, needs: frozenset[str] = frozenset(), top_k: int | None = None):
    """Returns `score(params, rollouts) -> Scored`, which processes `rows` rows at a time.

    Rows with tokens in the mask come first; where `rows` rows have no tokens, they are skipped and their results are 0.
    """

    def part(params, tokens, segment_ids, mask):
        hidden = scorer.hidden(params, tokens, segment_ids)
        before = tokens.shape[1] - hidden.shape[1]
        tokens, mask = last_columns((tokens, mask), hidden.shape[1])
        stats = scorer.stats(params, hidden, tokens, mask)
        values = scorer.values(params, hidden) if "values" in needs else None
        likeliest = None if top_k is None else scorer.likeliest(params, hidden, tokens, stats.logp, top_k)
        scored = Scored(stats, values, likeliest)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (before, 0), *[(0, 0)] * (x.ndim - 2))), scored)

    def score(params, rollouts: Rollouts) -> Scored:
        arrays = flat((rollouts.tokens, rollouts.segment_ids, rollouts.mask))
        order, computed = present_first(jnp.any(arrays[2], axis=-1), max(1, arrays[0].shape[0] // rows), scorer.unit)
        arrays = jax.tree.map(lambda x: x[order], arrays)
        shapes = jax.eval_shape(partial(part, params), *jax.tree.map(lambda x: x[0], arrays))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        scored = lax.map(lambda x: lax.cond(x[0], lambda: part(params, *x[1]), lambda: zero), (computed, arrays))
        back = jnp.argsort(order.ravel())
        return jax.tree.map(lambda x: flat(x)[back].reshape(*rollouts.mask.shape, *x.shape[3:]), scored)

    return score


def make_prepare(config: Config, scorer: Scorer):
    """Returns the jitted `prepare(params, reference, rollouts, carried, algorithm) -> (Prepared, carried)`.

    `carried` is the algorithm's carried state, updated once before the advantage is computed. A forward pass over the
    rollout runs only if the algorithm requires a field from it, or if it recomputes log π_old, which a single optimizer
    step computes itself. A penalty or the field `ref_logp` adds a forward pass with the reference parameters.
    """
    settings, needs = config.rollout, config.needs
    rows, own = settings.microbatch_rows, settings.optimizer_steps == 1
    score_reference = make_score(scorer, rows)

    @jax.jit
    def prepare(params, reference, rollouts: Rollouts, carried, algorithm: PolicyGradient):
        rescored = settings.rescores(scorer.model.head(params).table.dtype)
        asked = needs & {"proxy", "entropy", "values", "divergence"}
        if rescored and own:  # π_old = π_θ in the only step, so the divergence is 0
            asked -= {"divergence"}
        if rescored and (not own or "old_logp" in fields_of_rollouts(algorithm)):
            asked |= {"old_logp"}
        scored = None
        if asked:
            scored = make_score(scorer, rows, asked, algorithm.top_k if "divergence" in asked else None)(
                params, rollouts
            )
            found = {"proxy": scored.stats.proxy, "entropy": scored.stats.entropy, "values": scored.values}
            found |= {"old_logp": scored.stats.logp} if rescored else {}
            rollouts = dataclasses.replace(rollouts, **found)
        if config.penalty is not None or "ref_logp" in needs:
            rollouts = dataclasses.replace(rollouts, ref_logp=score_reference(reference, rollouts).stats.logp)
        rollouts, carried = advance(algorithm.carried, carried, rollouts)
        returns = None if rollouts.values is None else config.critic.returns(rollouts.rewards, rollouts.mask)
        extra = Extra(rollouts.values, returns, scored.likeliest if scored else None)
        return Prepared(rollouts, advantages_of(algorithm.advantage, rollouts), extra), carried

    return prepare
