"""Prints the figures of docs/claims.md: `python -m benchmarks.claims`."""

import time

import jax
import numpy as np

from tests.claims import cumulative_ratio_test, position_clip_test, power_mean_test, token_baseline_test, weights_test


def told(values):
    return f"{np.mean(values):.3f} ({np.min(values):.3f}–{np.max(values):.3f})"


def cumulative_ratio():
    for move in cumulative_ratio_test.MOVES:
        found = jax.tree.map(np.asarray, cumulative_ratio_test.measure(cumulative_ratio_test.make_problems(move)))
        print(f"\nsequence KL {told(found['kl'])}; bias as mean (min–max) over 20 problems")
        for kind in ("policy", "outcome"):
            of = found[kind]
            print(f"  {kind}:", *(f"{name} {told(100 * of[name]['bias'])} %;" for name in of))
            ratio = (of["cumulative"]["variance"] / of["sequence"]["variance"])[:, :2]
            above = ratio[ratio > 1 + 1e-9]
            print(f"    variance per term / sequence variance: median {np.median(ratio):.3f}, {told(ratio)};", end=" ")
            print(f"above 1 in {above.size} of {ratio.size}", *([f"with {told(above)}"] if above.size else []))


def position_clip(rows=4000):
    cases = [("close", position_clip_test.CLOSE), ("far", position_clip_test.FAR)]
    for name, kl in cases:
        for power, width in ((0.5, 1.0), (0.5, 2.0), (0.0, 16.0)):
            found = position_clip_test.profile(kl, power, width, rows)
            print(f"\n{name}, KL {kl:g} per token; bounds ±{width:g}σ·t^{power:g}; t = {position_clip_test.AT}")
            print("  spread/√t in units of σ", np.round(found["spread"] / np.sqrt(position_clip_test.AT), 3), end="  ")
            print("drift", np.array2string(found["drift"], precision=4, suppress_small=True))
            for side in ("positive", "negative"):
                share = found[f"clip_share_{side}"]
                half = position_clip_test.interval(share, rows)
                print(
                    f"  clipped, A {side}:",
                    *(f"{100 * s:.1f}±{100 * h:.1f} %" for s, h in zip(share, half, strict=True)),
                )


def population_baselines():
    print(
        "\nvariance of one word's gradient with the population's baselines: median ratio to the mean baseline, and"
        " share of the 50 problems with a ratio of at most 1"
    )
    for kind in token_baseline_test.KINDS:
        for shared in (False, True):
            found = token_baseline_test.populations(kind, shared)
            print(f"  {kind}, {'last token' if shared else 'whole prefix'}:", end=" ")
            for name, variance in found.items():
                for constant in sorted({"mean", "mean to go"} - {name}):
                    ratio = variance / found[constant]
                    print(f"{name} / {constant} {np.median(ratio):.3f}, {np.mean(ratio <= 1 + 1e-12):.0%};", end=" ")
            print()


def group_baselines(problems=8):
    for label, words in (("lengths 1 to 3", token_baseline_test.WORDS), ("length 3", token_baseline_test.SAME)):
        for kind in token_baseline_test.KINDS:
            for count in (2, 4, 8, 32):
                found = [
                    token_baseline_test.measure(token_baseline_test.make_problem(words, kind, seed), count)
                    for seed in range(problems)
                ]
                print(f"\n{label}, {kind}, N = {count}")
                for name in found[0]:
                    of = {key: np.array([x[name][key] for x in found]) for key in found[0][name]}
                    rloo = np.array([x["leave_one_out"]["variance"] for x in found])
                    raw, scaled = of["variance"] / rloo, of["variance"] / of["share"] ** 2 / rloo
                    shorter = np.sum(of["share"] + of["share±"] < 1 - 1 / count - 1e-12)
                    print(f"  {name}: gradient length {told(of['share'])} ±{np.mean(of['share±']):.3f}", end=", ")
                    print(f"below 1 − 1/N in {shorter} of {problems}; error {np.mean(of['error']):.3f};", end=" ")
                    print(f"variance {np.median(raw):.3f} ±{np.median(of['variance±'] / rloo):.3f}", end=", ")
                    print(f"at equal length {np.median(scaled):.3f} ({np.min(scaled):.3f}–{np.max(scaled):.3f})")


def balanced():
    for rewards in ((0.0, 1.0), (0.0, 0.5, 1.0)):
        pushes, gap, _ = weights_test.coupling(rewards)
        print(f"\nrewards {rewards}, {len(gap)} groups: RMS of Σ w A, and its correlation with the gap in length")
        for name, push in pushes.items():
            size = np.sqrt(np.mean(push**2))
            print(f"  {name} {size:.4f}", f"{np.corrcoef(push, gap)[0, 1]:.2f}" if size > 1e-12 else "")


def power_mean():
    powers = np.array(power_mean_test.POWERS)
    print("\nHölderPO: median over 20 problems; p =", powers)
    for clip in power_mean_test.CLIPS:
        for move in power_mean_test.MOVES:
            variance, share = power_mean_test.variances(move, clip)
            print(f"  {clip}, moved {move}:")
            for name, values in (("raw", variance), ("at equal length", variance / share**2)):
                least = powers[np.argmin(values, -1)]
                relative = np.median(values / np.min(values, -1, keepdims=True), 0)
                inside = np.sum((least >= 0) & (least <= 1))
                print(
                    f"    {name}: variance / minimum over p {np.round(relative, 2)}; minimum at p in [0, 1] in "
                    f"{inside} of {len(least)}"
                )
            print(f"    gradient length {np.round(np.median(share, 0), 2)}")


if __name__ == "__main__":
    start = time.process_time()
    with jax.enable_x64(True):
        cumulative_ratio()
        population_baselines()
        group_baselines()
        balanced()
        power_mean()
    position_clip()
    print(f"\n{time.process_time() - start:.0f} CPU seconds")
