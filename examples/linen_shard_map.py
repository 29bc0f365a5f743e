"""CTPO's ratio with OTB's advantage for a Flax linen model on 8 devices: `python examples/linen_shard_map.py`.

Advantages and weights of the whole optimizer step are computed on global arrays, outside of `jax.shard_map`. Inside,
each of 8 simulated CPU devices calls `policy_loss` on its own rows, and `psum` adds the losses. Task: repeat three
symbols backwards, then stop. Reward: the share of the answer before the first mistake.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from rljax import Rollouts, advantage, algorithms, make_batch, policy_loss
from rljax.logprobs import token_logps

jax.config.update("jax_num_cpu_devices", 8)

CTPO_OTB = dataclasses.replace(algorithms.ctpo(), advantage=advantage.optimal_token_baseline)
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
PROMPTS, COMPLETIONS, SYMBOLS, GIVEN, WIDTH = 32, 16, 4, 3, 32
STOP, LENGTH = SYMBOLS, 2 * GIVEN + 1  # a row is the prompt, the answer and STOP


class Policy(nn.Module):
    """One transformer block from tokens [*B, T] to hidden states [*B, T, WIDTH]; embedding and unembedding are tied."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(SYMBOLS + 1, WIDTH, name="embed")(tokens)
        x += self.param("positions", nn.initializers.normal(1.0), (LENGTH, WIDTH))
        x += nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
        x += nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x)


MODEL, OPTIMIZER = Policy(), optax.adam(3e-3)


def hidden(params, tokens) -> Any:
    return MODEL.apply(params, tokens)


def unembedding(params):
    return params["params"]["embed"]["embedding"]


def over_devices(function, *specs, out):
    return jax.shard_map(function, mesh=MESH, in_specs=specs, out_specs=out)


def sample(params, key):
    """Each device samples the completions of its own prompts, [P/8, G, T]."""
    prompts, draws = jax.random.split(jax.random.fold_in(key, lax.axis_index("data")))
    prompts = jax.random.randint(prompts, (PROMPTS // 8, 1, GIVEN), 0, SYMBOLS)
    tokens = jnp.zeros((PROMPTS // 8, COMPLETIONS, LENGTH), jnp.int32).at[..., :GIVEN].set(prompts)

    def step(t, tokens):
        logits = hidden(params, tokens)[..., t - 1, :] @ unembedding(params).T
        return tokens.at[..., t].set(jax.random.categorical(jax.random.fold_in(draws, t), logits))

    return lax.fori_loop(GIVEN, LENGTH, step, tokens)


def verify(tokens):
    """The mask, true up to and including STOP, and the rewards [P, G]."""
    prompt, said = tokens[..., :GIVEN], tokens[..., GIVEN:]
    chosen = jnp.cumsum(said == STOP, axis=-1) - (said == STOP) == 0
    answer = jnp.concatenate([prompt[..., ::-1], jnp.full_like(said[..., :1], STOP)], axis=-1)
    right = jnp.cumprod(said == answer, axis=-1)
    return jnp.concatenate([jnp.zeros(prompt.shape, bool), chosen], axis=-1), jnp.mean(right, axis=-1)


def stats(params, tokens, mask):
    """Log-probabilities, entropies and proxies of the chosen tokens, through `pallas_kernels.token_stats`."""
    return token_logps(hidden(params, tokens), unembedding(params), tokens, mask)


def loss(params, tokens, batch):
    return policy_loss(stats(params, tokens, batch.mask).logp, batch, CTPO_OTB.ratio)


def data_parallel_loss(params, tokens, batch):
    """The sum of the devices' losses; its gradient is summed over devices too."""
    total = over_devices(lambda *args: lax.psum(loss(*args), "data"), P(), P("data"), P("data"), out=P())
    return total(params, tokens, batch)


@jax.jit
def roll_out(params, key):
    """(tokens, Batch, mean reward); the arrays are global, with prompts sharded over the devices."""
    tokens = over_devices(sample, P(), P(), out=P("data"))(params, key)
    mask, rewards = verify(tokens)
    old = over_devices(stats, P(), P("data"), P("data"), out=P("data"))(params, tokens, mask)
    rollouts = Rollouts(tokens=tokens, mask=mask, rewards=rewards, old_logp=old.logp, proxy=old.proxy)
    return tokens, make_batch(CTPO_OTB, rollouts), jnp.mean(rewards)


GRADIENT = jax.jit(jax.grad(data_parallel_loss))


@jax.jit
def descend(params, state, gradient):
    updates, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(params, updates), state


def difference(params, tokens, batch):
    """Greatest difference between the sharded and the unsharded gradient, relative to the largest entry."""
    unsharded = jax.jit(jax.grad(loss))(*jax.device_get((params, tokens, batch)))
    pairs = (GRADIENT(params, tokens, batch), unsharded)
    ours, theirs = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in pairs)
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def main() -> None:
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))
    state, rewards = OPTIMIZER.init(params), []
    for step in range(80):
        tokens, batch, reward = roll_out(params, jax.random.key(step))
        rewards.append(float(reward))
        for _ in range(2):  # in the second step the ratio differs from 1
            params, state = descend(params, state, GRADIENT(params, tokens, batch))
        if step == 0:
            error = difference(params, tokens, batch)
            print(f"the sharded gradient equals the unsharded gradient to {error:.1e} of its largest entry")
            assert error < 1e-5
    print(f"reward before {rewards[0]:.3f}, after {rewards[-1]:.3f} on {jax.device_count()} devices")


if __name__ == "__main__":
    main()
