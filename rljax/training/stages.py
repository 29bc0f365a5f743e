"""The two stages as the loop sees them: an iterator, an optimizer, and one step from state to state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from rljax import penalty
from rljax.metrics import reward_summary
from rljax.rollout import SamplingConfig
from rljax.tasks.reading import batches, encode_prompts, pack
from rljax.training.collect import collect, greedy_rewards, make_sampler, with_signal_first
from rljax.training.config import Config
from rljax.training.likelihood import make_update as make_likelihood_update
from rljax.training.mesh import to_devices, to_host
from rljax.training.optimizer import make_optimizer
from rljax.training.policy import make_update as make_policy_update
from rljax.training.prepare import make_prepare, make_score
from rljax.training.setting import Setting, purpose_key

SAMPLES_SHOWN = 12


class LikelihoodStage:
    """Stage 1: packed demonstrations under maximum likelihood."""

    phase = "likelihood"

    def __init__(self, config: Config, setting: Setting):
        settings = config.likelihood
        if not setting.data.demonstrations:
            raise ValueError(f"likelihood.steps = {settings.steps}: this task has no demonstrations; give it some "
                             "(a jsonl's `solution`), or set likelihood.steps to 0")  # fmt: skip
        rows = pack(setting.data.demonstrations, setting.data.tokenizer, settings.row_length)
        self.steps, self.mesh = settings.steps, setting.mesh
        self.optimizer = make_optimizer(settings.optimizer)
        self.checkpoint_every = 10 * config.checkpoint_every
        self.iterator = batches(rows, settings.rows, config.seed)
        self._update = make_likelihood_update(settings, setting.model, setting.mesh, self.optimizer)

    def step(self, state, n: int, key: jax.Array):
        """(state, metrics, batch) after optimizer step n."""
        batch = next(self.iterator)
        state, metrics = self._update(state, to_devices(batch, self.mesh))
        return state, {**metrics, "tokens": int(batch["mask"].sum())}, batch


class PolicyStage:
    """Stage 2: sample, verify, and take the rollout's optimizer steps."""

    phase = "rl"

    def __init__(self, config: Config, setting: Setting):
        self.config, self.setting = config, setting
        self.reference: Any = None  # parameters at the start of the stage
        self.steps, self.checkpoint_every = config.steps, config.checkpoint_every
        self.optimizer = make_optimizer(config.optimizer)
        prompts = encode_prompts(setting.data.prompts, setting.data.tokenizer, config.rollout.prompt_length)
        prompts["index"] = np.arange(len(setting.data.prompts), dtype=np.int32)
        self.iterator = batches(prompts, config.rollout.prompts, config.seed)
        self.samples: list[dict] = []
        self.dropping = False  # the state of an algorithm's hysteresis
        self._rollouts = None
        sampling = config.rollout.sampling
        self._sampler = make_sampler(setting.model, setting.mesh, sampling)
        greedy = SamplingConfig(max_new_tokens=sampling.max_new_tokens, temperature=0.0)
        self._greedy = make_sampler(setting.model, setting.mesh, greedy)
        self._score = jax.jit(make_score(config, setting.model, setting.mesh))
        self._prepare = make_prepare(config, setting.model, setting.mesh)
        self._update = make_policy_update(config, setting.model, setting.mesh, self.optimizer)

    def step(self, state, n: int, key: jax.Array):
        """(state, metrics, batch) after rollout n and its optimizer steps."""
        settings, data = self.config.rollout, self.setting.data
        prompts = next(self.iterator)
        problems = [data.prompts[i] for i in prompts["index"]]
        drawn = collect(self._sampler, state.params, prompts, problems, data, settings.completions,
                        purpose_key(key, "rollout", n))  # fmt: skip
        self._show(drawn)
        verified = drawn.rollouts.rewards
        reward_key = purpose_key(key, "rewards", n)
        rollouts = dataclasses.replace(drawn.rollouts, rewards=self._mapped(verified, reward_key))
        if "greedy_rewards" in self.config.needs:
            earned = greedy_rewards(self._greedy, state.params, prompts, problems, data, purpose_key(key, "greedy", n))
            rollouts = dataclasses.replace(rollouts, greedy_rewards=self._mapped(earned[:, None], reward_key)[:, 0])
        if settings.train_groups:
            rollouts = with_signal_first(rollouts, settings.train_groups)
        state, metrics = self._learn(state, rollouts, jnp.int32(n))
        about = reward_summary(verified, drawn.rollouts.mask)
        about |= {"finished": drawn.finished.mean(), "tokens": drawn.rollouts.mask.sum()}
        return state, {**metrics, **about}, rollouts

    def _mapped(self, rewards: Any, key) -> Any:
        """The rewards [P, G] that are trained on."""
        mapped = self.config.reward_map
        return rewards if mapped is None else np.asarray(mapped(jnp.asarray(rewards), key))

    def _learn(self, state, rollouts, step):
        """The rollout's optimizer steps, and the mean of their metrics; minibatch i takes the groups i, i + M, …."""
        settings = self.config.rollout
        self._rollouts = rollouts = to_devices(rollouts, self.setting.mesh, P())
        prepared, dropping = self._prepare(state.params, self.reference, rollouts, jnp.bool_(self.dropping), step)
        self.dropping = bool(to_host(dropping))
        reference = self.reference if "kl" in self.config.needs else None
        history = []
        for _ in range(settings.epochs):
            for i in range(settings.minibatches):
                part = jax.tree.map(lambda x: x[i :: settings.minibatches], (rollouts, prepared))  # noqa: B023
                state, metrics = self._update(state, reference, *part, step)
                history.append(metrics)
        return state, jax.tree.map(lambda *values: sum(values) / len(values), *history)

    def kl_to_start(self) -> float | None:
        """KL(policy ‖ start of the stage), nats a token, by k3 over the rollout just trained on; None before any."""
        if self._rollouts is None:
            return None
        old_logp, mask = to_host((self._rollouts.old_logp, self._rollouts.mask))
        log_ratio = old_logp - to_host(self._score(self.reference, self._rollouts).stats.logp)
        return float(np.mean(penalty.k3(log_ratio[mask]))) if mask.any() else None

    def _show(self, drawn) -> None:
        """Keeps one completion of each of the first prompts, for the report."""
        group = self.config.rollout.completions
        rewards = drawn.rollouts.rewards.reshape(-1)
        shown = list(zip(drawn.problems, drawn.texts, rewards, strict=True))[: SAMPLES_SHOWN * group : group]
        self.samples = [
            {"prompt": p.prompt, "completion": text, "answer": p.answer, "reward": float(reward), "level": p.level}
            for p, text, reward in shown
        ]
