"""Sweep over eight values of HölderPO's p in one compiled step: `python examples/sweep.py`, under a minute on a CPU.

An algorithm is a pytree whose leaves are its hyper-parameters, so `jax.vmap` over stacked algorithms and parameters
trains eight policies in one program, on the task of `bare_jax.py`. Writes `runs/sweep.png`.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from bare_jax import STOP, WIDTH, rollout, stats
from jax import lax

from rljax import Rollouts, algorithms, make_batch, policy_loss

POWERS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
STEPS, RATE, OUT = 50, 10.0, Path("runs/sweep.png")


def train_step(algorithm, params, key):
    """One rollout and four optimizer steps on it; returns (parameters, mean reward)."""
    tokens, mask, rewards = rollout(params, key)
    old_logp = stats(params, tokens).logp
    batch = make_batch(algorithm, Rollouts(tokens=tokens, mask=mask, rewards=rewards, old_logp=old_logp))

    def descend(_, params):
        gradient = jax.grad(lambda p: policy_loss(stats(p, tokens).logp, batch, algorithm.ratio))(params)
        return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)

    return lax.fori_loop(0, 4, descend, params), jnp.mean(rewards)


@jax.jit
def train(several, params, keys):
    """Mean rewards [step, algorithm]; all runs have the same initial parameters and random keys."""
    step = jax.vmap(train_step, in_axes=(0, 0, None))
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(POWERS), *x.shape)), params)
    return lax.scan(lambda params, key: step(several, params, key), params, keys)[1]


def draw(rewards: np.ndarray) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    smooth = np.apply_along_axis(partial(np.convolve, np.ones(10) / 10, mode="valid"), 0, rewards)
    for i, (p, curve) in enumerate(zip(POWERS, smooth.T, strict=True)):
        color = plt.get_cmap("viridis")(i / (len(POWERS) - 1))
        axes.plot(np.arange(len(curve)) + 10, curve, color=color, label=f"p = {p:g}")
    axes.set(xlabel="step", ylabel="mean reward (10 steps)", title="HölderPO at eight p, one compiled step")
    axes.legend(ncols=2, frameon=False)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUT, dpi=150)


def main() -> None:
    several = jax.tree.map(lambda *x: jnp.stack(x), *(algorithms.holder_po(p=p) for p in POWERS))
    keys, shape = jax.random.split(jax.random.key(0), STEPS + 2), (STOP + 1, WIDTH)
    params = {n: jax.random.normal(k, shape) / 4 for n, k in zip(("embedding", "unembedding"), keys[:2], strict=True)}
    rewards = np.asarray(train(several, params, keys[2:]))
    for p, first, last in zip(POWERS, rewards[:10].mean(axis=0), rewards[-10:].mean(axis=0), strict=True):
        print(f"p = {p:4g}: reward {first:.3f} -> {last:.3f} (means of 10 steps)")
    draw(rewards)
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
