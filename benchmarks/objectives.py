"""CPU time of every loss and of OTB's advantage, compared with simpler functions and with the memory bandwidth.

    python benchmarks/objectives.py [B T [P G T]]

A time is the least CPU time of several turns; the turns of all programs interleave, so that other load slows all alike.
The floor is the time to read and write the necessary bytes at the bandwidth of y = x + 1, measured in the same turns.
glibc uses huge pages, as NumPy does for its arrays: otherwise page faults dominate beyond 32 MiB of temporaries.
"""

import inspect
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import segmented_cumsum
from rljax import Batch, advantage, algorithms, policy_loss

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PREFIX = ("ctpo", "cppo", "minpro")  # also compared with clip plus two scans
SCANS = {"segmented_cumsum": False, "segmented_cumsum reverse": True}


def random_batch(b: int, t: int) -> tuple[jax.Array, Batch]:
    """log π [B, T] and a Batch with all fields; rows have different lengths."""
    rng = np.random.default_rng(0)
    mask = np.arange(t) < rng.integers(t // 8, t + 1, (b, 1))
    old_logp = rng.normal(-3, 1, (b, t)).astype(np.float32)
    fields = {
        "mask": mask,
        "old_logp": old_logp,
        "advantages": np.repeat(rng.normal(size=(b, 1)), t, axis=1).astype(np.float32),
        "weights": (mask / mask.sum()).astype(np.float32),
        "tokens": rng.integers(0, 1000, (b, t), np.int32),
        "ref_logp": old_logp,
        "divergence": rng.uniform(0, 0.2, (b, t)).astype(np.float32),
    }
    logp = (old_logp + rng.normal(0, 0.1, (b, t))).astype(np.float32)
    return jnp.asarray(logp), Batch(**{name: jnp.asarray(x) for name, x in fields.items()})


def ratios() -> dict[str, Callable]:
    """The ratio of every algorithm by name; hyper-parameters without a default are 1."""

    def ratio_of(make: Callable) -> Callable:
        parameters = inspect.signature(make).parameters.values()
        return make(**{p.name: 1.0 for p in parameters if p.default is p.empty}).ratio

    return {name: ratio_of(getattr(algorithms, name)) for name in sorted(algorithms.__all__)}


def compiled_loss(ratio: Callable, logp, batch: Batch):
    """The compiled loss and gradient; the arguments may be arrays or `jax.ShapeDtypeStruct`s."""
    return jax.jit(lambda logp, batch: jax.value_and_grad(policy_loss)(logp, batch, ratio)).lower(logp, batch).compile()


def peak_arrays(step, shape: tuple[int, ...]) -> float:
    """Temporaries and results of a compiled program, in units of a float32 array of the shape."""
    analysis = step.memory_analysis()
    assert analysis is not None, "this backend has no memory analysis"
    return (analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / (4 * np.prod(shape))


def least_times(calls: dict[str, Callable], turns: int) -> dict[str, float]:
    seconds = {name: [] for name in calls}
    for _ in range(turns + 1):
        for name, call in calls.items():
            start = time.process_time()
            jax.block_until_ready(call())
            seconds[name].append(time.process_time() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def copying(x) -> Callable:
    """y = x + 1, ten times, which moves 20 times the bytes of x."""
    step = jax.jit(lambda x: x + 1).lower(x).compile()
    return lambda: [step(x).block_until_ready() for _ in range(10)][-1]


def compare_losses(b: int, t: int, turns: int = 15) -> dict[str, float]:
    """Prints a line for each algorithm and returns the times by name."""
    logp, batch = random_batch(b, t)
    steps = {name: compiled_loss(ratio, logp, batch) for name, ratio in ratios().items()}
    calls = {name: partial(step, logp, batch) for name, step in steps.items()}
    for name, reverse in SCANS.items():
        scan = jax.jit(partial(segmented_cumsum, reverse=reverse)).lower(logp, batch.mask).compile()
        calls[name] = partial(scan, logp, batch.mask)
    best = least_times({**calls, "copy": copying(logp)}, turns)
    bandwidth = 20 * logp.nbytes / best.pop("copy")
    needed = {name: 5 * logp.nbytes + batch.mask.nbytes for name in steps}  # logp, old_logp, A, w, m in; gradient out
    needed |= {name: 2 * logp.nbytes + batch.mask.nbytes for name in SCANS}
    print(f"loss and gradient, float32 [{b}, {t}], bandwidth {bandwidth / 1e9:.1f} GB/s")
    prefix = best["grpo"] + sum(best[name] for name in SCANS)
    for name, seconds in best.items():
        against = f"{seconds / best['grpo']:.2f} x clip" + f", {seconds / prefix:.2f} x clip and two scans" * (
            name in PREFIX
        )
        memory = f", peak {peak_arrays(steps[name], logp.shape):.1f} arrays" if name in steps else ""
        print(f"  {name:24} {seconds * 1e3:6.1f} ms, floor {needed[name] / bandwidth * 1e3:4.1f} ms, {against}{memory}")
    return best


def vectorized(rewards, mask, proxy):
    """OTB's advantage in vectorized NumPy, for masks without holes."""
    energy = np.where(mask, np.cumsum(np.where(mask, proxy, 0), axis=-1, dtype=np.float32), 0)
    R, total = rewards[..., None], energy.sum(axis=1, keepdims=True)
    alive, last = mask.sum(axis=1, keepdims=True), energy.max(axis=-1, keepdims=True)  # the energy is nondecreasing
    baseline = (R * energy).sum(axis=1, keepdims=True) / np.where(total > 0, total, 1)
    baseline = np.where(total > 0, baseline, (R * mask).sum(axis=1, keepdims=True) / np.maximum(alive, 1))
    others = (R * last).sum(axis=1, keepdims=True) - R * last
    left = last.sum(axis=1, keepdims=True) - last
    return np.where(mask, R - np.where(alive == 1, others / np.where(left > 0, left, 1), baseline), 0)


def over_groups(rewards, mask, proxy):
    """OTB's advantage as in verl: sums over the whole batch `[N, T]`, and a Python loop over groups for baselines."""
    n, t = mask.shape[0] * mask.shape[1], mask.shape[2]
    mask = mask.reshape(n, t).astype(np.float32)
    last = np.maximum(mask.sum(axis=-1).astype(int) - 1, 0)
    dense = np.zeros((n, t), np.float32)
    dense[np.arange(n), last] = rewards.reshape(n)
    returns = np.cumsum((dense * mask)[:, ::-1], axis=-1)[:, ::-1]
    energy = np.cumsum(proxy.reshape(n, t) * mask, axis=-1)
    baselines = np.zeros((n, t), np.float32)
    for group in np.arange(n).reshape(rewards.shape):
        alive, W = mask[group], energy[group] * mask[group]
        baseline = (returns[group] * W).sum(axis=0) / (W.sum(axis=0) + 1e-8)
        lone = alive.sum(axis=0) == 1  # one completion left: no baseline in verl; rljax uses the other completions
        baselines[group] = np.where(lone, 0, baseline)
    return ((returns - baselines) * mask).reshape(proxy.shape)


def compare_advantages(p: int, g: int, t: int, turns: int = 5) -> dict[str, float]:
    """Prints a line for each implementation of OTB's advantage and returns the times by name."""
    rng = np.random.default_rng(0)
    mask = np.arange(t) < rng.integers(t // 8, t + 1, (p, g, 1))
    rewards, proxy = rng.integers(0, 2, (p, g)).astype(np.float32), 2 * rng.random((p, g, t), np.float32)
    here = tuple(map(jnp.asarray, (rewards, mask, proxy)))
    ours = jax.jit(lambda r, m, e: advantage.optimal_token_baseline(r, m, proxy=e)).lower(*here).compile()
    several = np.where(mask.sum(axis=1, keepdims=True) > 1, mask, False)
    np.testing.assert_allclose(ours(*here), vectorized(rewards, mask, proxy), atol=1e-4)
    np.testing.assert_allclose(
        np.where(several, ours(*here), 0), np.where(several, over_groups(rewards, mask, proxy), 0), atol=1e-4
    )
    best = least_times(
        {
            "rljax": partial(ours, *here),
            "NumPy, vectorized": partial(vectorized, rewards, mask, proxy),
            "NumPy, a loop over groups": partial(over_groups, rewards, mask, proxy),
            "copy": copying(here[2]),
        },
        turns,
    )
    bandwidth = 20 * proxy.nbytes / best.pop("copy")
    floor = (2 * proxy.nbytes + mask.nbytes + rewards.nbytes) / bandwidth
    print(f"OTB's advantage, P {p} G {g} T {t}, bandwidth {bandwidth / 1e9:.1f} GB/s, floor {floor * 1e3:.1f} ms")
    for name, seconds in best.items():
        print(f"  {name:26} {seconds * 1e3:7.1f} ms, {seconds / best['rljax']:.2f} x rljax", flush=True)
    return best


def main():
    sizes = [int(size) for size in sys.argv[1:]] or [512, 4096, 512, 8, 4096]
    compare_losses(*sizes[:2])
    if len(sizes) > 2:
        compare_advantages(*sizes[2:])


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HUGE_PAGES)
    main()
