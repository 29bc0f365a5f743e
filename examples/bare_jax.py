"""CTPO's ratio with OTB's advantage in a bare JAX loop: `python examples/bare_jax.py`, under a minute on a CPU.

Task: count from a digit up to 9, then stop (`7` → `8 9 .`). Reward: the share of the answer before the first mistake.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import token_stats
from rljax import Rollouts, advantage, algorithms, make_batch, policy_loss

CTPO_OTB = dataclasses.replace(algorithms.ctpo(), advantage=advantage.optimal_token_baseline)
G, T, WIDTH, STOP, RATE = 16, 10, 16, 10, 10.0  # completions per prompt, tokens, …; the prompts are the ten digits


def rollout(params, key):
    """(tokens, mask, rewards); the mask is true up to and including STOP."""
    prompts = jnp.repeat(jnp.arange(10)[:, None], G, axis=1)

    def step(token, key):
        token = jax.random.categorical(key, params["embedding"][token] @ params["unembedding"].T)
        return token, token

    tokens = jnp.moveaxis(lax.scan(step, prompts, jax.random.split(key, T))[1], 0, -1)
    mask = jnp.cumsum(tokens == STOP, axis=-1) - (tokens == STOP) == 0
    right = jnp.cumprod(tokens == prompts[..., None] + 1 + jnp.arange(T), axis=-1)  # STOP is the digit after 9
    return tokens, mask, jnp.sum(right, axis=-1) / (STOP - prompts)


def stats(params, tokens):
    """Log-probabilities, entropies and proxies, [P, G, T] each."""
    prompts = jnp.broadcast_to(jnp.arange(10)[:, None, None], (10, G, 1))
    seen = params["embedding"][jnp.concatenate([prompts, tokens[..., :-1]], axis=-1)]
    flat = token_stats(seen.reshape(-1, WIDTH), params["unembedding"], tokens.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(tokens.shape), flat)


@jax.jit
def train_step(params, key):
    """One rollout and four optimizer steps on it; from the second step on the ratio differs from 1."""
    tokens, mask, rewards = rollout(params, key)
    old = stats(params, tokens)
    rollouts = Rollouts(tokens=tokens, mask=mask, rewards=rewards, old_logp=old.logp, proxy=old.proxy)
    batch = make_batch(CTPO_OTB, rollouts)

    def descend(_, params):
        gradient = jax.grad(lambda p: policy_loss(stats(p, tokens).logp, batch, CTPO_OTB.ratio))(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    return lax.fori_loop(0, 4, descend, params), jnp.mean(rewards)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 203)
    shape = (STOP + 1, WIDTH)
    params = {n: jax.random.normal(k, shape) / 4 for n, k in zip(("embedding", "unembedding"), keys[:2], strict=True)}
    before = train_step(params, keys[2])[1]
    for key in keys[3:]:
        params, after = train_step(params, key)
    print(f"reward before {before:.3f}, after {after:.3f}")


if __name__ == "__main__":
    main()
