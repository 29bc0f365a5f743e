"""CTPO's ratio with OTB's advantage in the GRPO learner of google-tunix 0.1.7 (`make examples` installs Tunix).

A GRPOConfig names a registered policy loss and a registered advantage estimator. A loss gets the model and the example,
which suffices for the ratio. An estimator gets only the rewards, without the mask or the model, and the learner keeps
one advantage per completion, which does not suffice for the optimal token baseline. The adapter is two registered
functions and one overridden method (private, but abstract in the base class); nothing is patched:

- `rewards_as_they_are`, the registered estimator, passes the rewards through in place of advantages.
- `Learner._generate_and_compute_advantage` has the whole rollout. It computes proxies and old log-probabilities in
  one more pass of the actor, then A and w, [B, T] each, and stores them in its own TrainExample.
- `ctpo_loss` returns a sum, which Tunix would divide by the number of microbatches, so the learner accepts only one.

Task: count from a digit up to 9, then stop. Reward: the share of the answer before the first mistake.
"""

import dataclasses
from os.path import commonprefix

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen3 import model as qwen3
from tunix.rl import common, function_registry
from tunix.rl import rl_cluster as clusters
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout.base_rollout import RolloutConfig

from rljax import Batch, Rollouts, advantage, algorithms, make_batch, policy_loss
from rljax.logprobs import token_logps

CTPO_OTB = dataclasses.replace(algorithms.ctpo(), advantage=advantage.optimal_token_baseline)
PAD, STOP, DIGITS = 0, 1, "0123456789"
PROMPTS, COMPLETIONS, ROLLOUTS = 16, 16, 40
TRACED, REWARDS = [], []  # the name of each traced loss, and the mean reward of each rollout


@flax.struct.dataclass(frozen=True)
class Example(grpo_learner.TrainExample):
    weights: jax.Array | None = None


def stats(model, example, temperature):
    """Log-probabilities, entropies and proxies of the completions, [B, T] each."""
    tokens, positions, attention, _ = common.process_ids(example.prompt_ids, example.completion_ids, PAD, STOP)
    model = nnx.merge(*nnx.split(model))  # a copy, since the model sows intermediates
    model(tokens, positions, None, attention, output_hidden_states=True)  # unused logits are not computed
    hidden = nnx.pop(model, nnx.Intermediate)["all_hidden_states"][-1]
    mask = jnp.concatenate([jnp.zeros(example.prompt_ids.shape, bool), example.completion_mask], axis=1)
    found = token_logps(hidden, model.embedder.input_embedding[...], tokens, mask, temperature=temperature)
    return jax.tree.map(lambda x: x[:, example.prompt_ids.shape[1] :], found)


stats_of = nnx.jit(stats, static_argnames="temperature")


@function_registry.register_advantage_estimator("rewards_as_they_are")
def rewards_as_they_are(rewards, num_generations):
    return rewards


@function_registry.register_policy_loss_fn("ctpo")
def ctpo_loss(model, example, algo_config, pad_id, eos_id):
    TRACED.append("ctpo_loss")
    batch = Batch(
        mask=example.completion_mask,
        old_logp=example.old_per_token_logps,
        advantages=example.advantages,
        weights=example.weights,
    )
    logp = stats(model, example, algo_config.temperature).logp
    zero = jnp.zeros(())
    return policy_loss(logp, batch, CTPO_OTB.ratio), {"kl": zero, "pg_clipfrac": zero}  # Tunix logs these two


class Learner(grpo_learner.GRPOLearner):
    """Tunix's learner, with A and w of every token in its examples."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self._training_config.mini_batch_size or self._training_config.train_micro_batch_size:
            raise ValueError("mini_batch_size and train_micro_batch_size: expected None, since the weights refer to a "
                             "whole rollout, which must be one optimizer step")  # fmt: skip

    def _generate_and_compute_advantage(self, training_input, mode=clusters.Mode.TRAIN):
        rollout = self.rl_cluster.cluster_config.rollout_config
        rollout.seed = jax.random.PRNGKey(len(REWARDS))  # None would repeat the same draws
        example = super()._generate_and_compute_advantage(training_input, mode)
        REWARDS.append(float(np.mean(example.advantages)))
        old = stats_of(self.rl_cluster.actor_trainer.model, example, temperature=self.algo_config.temperature)
        np.testing.assert_allclose(  # Tunix computes these as well if num_iterations > 1
            jnp.where(example.completion_mask, example.old_per_token_logps, 0), old.logp, atol=1e-4
        )
        G = self.algo_config.num_generations
        named = {"tokens": example.completion_ids, "mask": example.completion_mask, "rewards": example.advantages,
                 "old_logp": old.logp, "proxy": old.proxy}  # fmt: skip
        rollouts = Rollouts(**{name: x.reshape(-1, G, *x.shape[1:]) for name, x in named.items()})
        batch = make_batch(CTPO_OTB, rollouts)
        A, w = (x.reshape(old.logp.shape) for x in (batch.advantages, batch.weights))
        fields = {f.name: getattr(example, f.name) for f in dataclasses.fields(example)}
        return Example(**fields | {"advantages": A, "old_per_token_logps": old.logp}, weights=w)


class Tokenizer:
    """One token per digit, and a dot for STOP."""

    TOKENS = ("", ".", *DIGITS)

    def encode(self, text, **_):
        return [self.TOKENS.index(character) for character in text]

    def decode(self, ids, **_):
        return "".join(self.TOKENS[i] for i in ids)

    def pad_id(self):
        return PAD

    def bos_id(self):
        return STOP

    def eos_id(self):
        return STOP


def reward(prompts, completions, **_):
    answers = [DIGITS[int(prompt) + 1 :] + "." for prompt in prompts]
    return [len(commonprefix(pair)) / len(pair[0]) for pair in zip(answers, completions, strict=True)]


def batches(count):
    return [{"prompts": batch} for batch in np.random.default_rng(0).choice(list(DIGITS), (count, PROMPTS))]


def tiny_qwen3():
    size = {"num_layers": 1, "embed_dim": 32, "hidden_dim": 64, "num_heads": 4, "head_dim": 8, "num_kv_heads": 4}
    config = qwen3.ModelConfig(
        **size, vocab_size=2 + len(DIGITS), rope_theta=100, norm_eps=1e-6, use_tied_embedding=True
    )
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    model.embedder.input_embedding[...] *= 20  # Tunix expects a checkpoint to replace its initial weights
    draws = nnx.Rngs(1)
    for layer in model.layers:
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            part.kernel[...] = jax.random.normal(draws(), part.kernel.shape) / part.kernel.shape[0] ** 0.5
    return model


def cluster():
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return clusters.RLCluster(
        actor=tiny_qwen3(),
        tokenizer=Tokenizer(),
        cluster_config=clusters.ClusterConfig(
            role_to_mesh=dict.fromkeys((clusters.Role.ACTOR, clusters.Role.REFERENCE, clusters.Role.ROLLOUT), mesh),
            training_config=clusters.RLTrainingConfig(
                actor_optimizer=optax.adam(3e-3), eval_every_n_steps=10**6, max_steps=2 * ROLLOUTS
            ),
            rollout_config=RolloutConfig(
                max_tokens_to_generate=10, max_prompt_length=2, kv_cache_size=16, temperature=1.0
            ),
        ),
    )


def main() -> None:
    learner = Learner(
        rl_cluster=cluster(),
        reward_fns=reward,
        algo_config=grpo_learner.GRPOConfig(
            policy_loss_fn="ctpo",
            advantage_estimator="rewards_as_they_are",
            num_generations=COMPLETIONS,
            num_iterations=2,
            beta=0.0,
        ),
    )
    learner.train(batches(ROLLOUTS))
    trainer = learner.rl_cluster.actor_trainer
    assert trainer.train_steps == 2 * len(REWARDS) == 2 * ROLLOUTS
    assert TRACED == ["ctpo_loss"]  # traced once: one program runs every step
    print(f"Tunix's trainer ran {trainer.train_steps} optimizer steps of {TRACED[0]} on {len(REWARDS)} rollouts")
    print(f"reward before {REWARDS[0]:.3f}, after {np.mean(REWARDS[-5:]):.3f}")


if __name__ == "__main__":
    main()
