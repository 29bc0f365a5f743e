"""Generator of the figures in docs/algebra.md: `.venv/bin/python tools/docs/figures.py`."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rljax import Batch, aggregation, policy_loss, ratio
from rljax.objective import bind

FOLDER = Path(__file__).parents[2] / "docs/figures"
UP, DOWN, VALUE = "#2166ac", "#c8502d", "#444444"  # A > 0, A < 0, and a ratio's value
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150,
    "savefig.facecolor": "white", "figure.constrained_layout.use": True, "axes.linewidth": 0.7,
}  # fmt: skip

local = ratio.local_gradient
POINTWISE = {
    "clip (PPO, GRPO)\nlow 0.2, high 0.2": partial(ratio.clip, low=0.2, high=0.2),
    "clip, with a dual bound\nlow 0.2, high 0.28, dual 3": partial(ratio.clip, low=0.2, high=0.28, dual=3.0),
    "log_clip (GMPO)\nlog_low 0.4, log_high 0.4": partial(ratio.log_clip, log_low=0.4, log_high=0.4),
    "token (OPO)": ratio.token,
    "soft_gate (SAPO)\npositive 1, negative 1.05": ratio.soft_gate,
    "local two_sided_clip (CISPO)\nhigh 0.28": local(partial(ratio.two_sided_clip, high=0.28)),
}
POSITION = partial(ratio.position_clip, log_low=0.025, log_high=0.05, log_dual=0.05)
TV, KL = partial(ratio.total_variation_mask, low=0.15, high=0.15), partial(ratio.kl_mask, low=0.05, high=0.05)
REGIONS = {  # (ratio, ordinal t of the token, its old probability q); a ratio alone is at t = 1, q = 0.25
    "position_clip (CTPO)\nat t = 1": POSITION,
    "position_clip (CTPO)\nat t = 16": (POSITION, 16, 0.25),
    "position_clip (CTPO)\nat t = 256": (POSITION, 256, 0.25),
    "total_variation_mask (DPPO)\n0.15, at q = 0.25": TV,
    "total_variation_mask (DPPO)\n0.15, at q = 0.05": (TV, 1, 0.05),
    "kl_mask (DPPO)\n0.05, at q = 0.25": KL,
}


def curves(f, t: int, q: float, sign: float, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """e^f of token t and the factor of its ∇log π, for each ratio in `r`; all earlier tokens have ratio 1."""
    old_logp = jnp.full((len(r), t), jnp.log(q))
    logp = old_logp.at[:, -1].add(jnp.log(jnp.asarray(r)))
    last = jnp.zeros_like(logp).at[:, -1].set(1.0)
    advantages = jnp.full_like(logp, sign)
    batch = Batch(mask=jnp.ones(logp.shape, bool), old_logp=old_logp, advantages=advantages, weights=last)
    value = jnp.exp(bind(f, batch)(logp - old_logp, advantages, batch.mask))[:, -1]
    return np.asarray(value), np.asarray(-jax.grad(policy_loss)(logp, batch, f)[:, -1] / sign)


def regions(named: dict, name: str) -> None:
    """Draws two blocks of three ratios, each with a panel for A > 0 and a panel for A < 0."""
    r = np.exp(np.linspace(np.log(0.25), np.log(4.0), 801))
    figure, axes = plt.subplots(4, 3, figsize=(7.2, 8.4), sharex=True, sharey=True)
    for place, (title, given) in enumerate(named.items()):
        f, t, q = given if isinstance(given, tuple) else (given, 1, 0.25)
        block, column = divmod(place, 3)
        for row, sign, color in ((2 * block, 1.0, UP), (2 * block + 1, -1.0, DOWN)):
            panel(axes[row, column], r, *curves(f, t, q, sign, r), color)
        axes[2 * block, column].set_title(title, fontsize=9)
    for row, axis in enumerate(axes[:, 0]):
        axis.set_ylabel("A < 0" if row % 2 else "A > 0", fontsize=11)
        axis.legend(edgecolor="none", framealpha=1, fontsize=8, loc="upper left", handlelength=1.8, borderpad=0.1)
    for axis in axes[-1]:
        axis.set_xlabel("ratio r")
    figure.savefig(FOLDER / f"{name}.png")


def panel(axis, r: np.ndarray, value: np.ndarray, weight: np.ndarray, color: str) -> None:
    axis.axvline(1, color="#aaaaaa", linewidth=0.6, zorder=0)
    axis.fill_between(r, weight, color=color, alpha=0.28, linewidth=0)
    axis.plot(r, weight, color=color, linewidth=1.4, label="weight of ∇log π")
    axis.plot(r, value, color=VALUE, linewidth=1.4, linestyle=(0, (4, 2)), label="value $e^f$")
    axis.set_xscale("log")
    axis.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    axis.minorticks_off()
    axis.set_ylim(0, 4.3)


def credit(name: str = "credit") -> None:
    """Draws ∂ e^{f_t} / ∂ log π(y_j) for six tokens, on-policy."""
    named = {
        "token": ratio.token, "sequence_mean": ratio.sequence_mean, "local\nsequence_mean": local(ratio.sequence_mean),
        "cumulative": ratio.cumulative, "local\ncumulative": local(ratio.cumulative),
    }  # fmt: skip
    ones = jnp.ones(6)
    figure, axes = plt.subplots(1, len(named), figsize=(7.2, 2.2), sharey=True)
    for axis, (title, f) in zip(axes, named.items(), strict=True):
        jacobian = jax.jacobian(lambda ℓ, f=f: jnp.exp(f(ℓ, ones, jnp.ones(6, bool))))(0 * ones)
        image = axis.imshow(jacobian, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_xticks(range(6), range(1, 7))
        axis.set_yticks(range(6), range(1, 7))
        axis.set_xlabel("to token", fontsize=9)
    axes[0].set_ylabel("advantage of token")
    figure.colorbar(image, ax=axes, shrink=0.75, pad=0.01, ticks=[0, 0.5, 1])
    figure.savefig(FOLDER / f"{name}.png")


def weights(name: str = "aggregations") -> None:
    """Draws the weights of two groups of three completions, one cell per token."""
    lengths, sign = np.array([[2, 4, 8], [3, 4, 6]]), np.array([[1, 1, -1], [1, 0, -1]])
    mask = np.arange(8) < lengths[..., None]
    named = {
        "token_mean": aggregation.token_mean, "sequence_mean": aggregation.sequence_mean,
        "group_mean": aggregation.group_mean, "constant, max_length 8": partial(aggregation.constant, max_length=8),
        "balanced": aggregation.balanced,
    }  # fmt: skip
    values = {title: np.asarray(f(jnp.asarray(mask), jnp.asarray(sign))) for title, f in named.items()}
    top = max(w.max() for w in values.values())
    figure, axes = plt.subplots(2, 3, figsize=(7.2, 5.0), sharey=True)
    rows = [0, 1, 2, 3.6, 4.6, 5.6]
    axes[1, 2].set_axis_off()
    for axis, (title, w) in zip(axes.ravel(), values.items(), strict=False):
        for y, row, m, s in zip(rows, w.reshape(6, 8), mask.reshape(6, 8), sign.ravel(), strict=True):
            color = {1: UP, -1: DOWN, 0: "#777777"}[s]
            for t in np.flatnonzero(m):
                shade = float(row[t] / top)
                axis.add_patch(plt.Rectangle((t, y), 0.92, 0.86, facecolor=(*matplotlib.colors.to_rgb(color), shade),
                                             edgecolor=color, linewidth=0.6))  # fmt: skip
            axis.text(8.3, y + 0.45, f"{row.sum():.3f}".lstrip("0") if row.any() else "0", va="center", fontsize=8.5)
        axis.set_title(title)
        axis.set(xlim=(-0.2, 10.4), ylim=(6.7, -0.9), xticks=[])
        axis.text(8.3, -0.45, "Σ w", fontsize=8, color="#555555", va="center")
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(left=False)
    side = {1: "A > 0", -1: "A < 0", 0: "A = 0"}
    names = [f"{side[s]}, {n} tokens" for s, n in zip(sign.ravel(), lengths.ravel(), strict=True)]
    axes[0, 0].set_yticks([y + 0.45 for y in rows], names)
    figure.savefig(FOLDER / f"{name}.png")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        regions(POINTWISE, "pointwise")
        regions(REGIONS, "regions")
        credit()
        weights()
