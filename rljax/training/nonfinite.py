"""Detection of a non-finite loss or gradient."""

from pathlib import Path

import jax
import numpy as np

from rljax.training.errors import RunError


def require_finite(metrics: dict[str, float], stage: str, step: int, batch, folder: Path) -> None:
    """Saves the step's batch and raises RunError if the loss or the gradient is not finite."""
    # `grad_norm` is NaN if all optimizer steps of a rollout were skipped.
    names = ("loss", "grad_norm") if metrics.get("optimizer_steps", 1) else ("loss",)
    bad = [name for name in names if not np.isfinite(metrics[name])]
    if not bad:
        return
    path = folder / "nonfinite" / f"{stage}-{step}.npz"
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        leaves = {jax.tree_util.keystr(name): np.asarray(x) for name, x in jax.tree_util.tree_leaves_with_path(batch)}
        np.savez(path, allow_pickle=False, **leaves)
    values = ", ".join(f"{name} = {metrics[name]}" for name in bad)
    raise RunError(
        f"{stage} step {step}: {values}: expected finite numbers. The batch of this step is saved in {path}, and the "
        "last good checkpoint is kept. The same command would fail at the same step: inspect the batch, then change "
        "the settings, for example to a lower learning rate, and start another run with "
        f"--run FOLDER{'' if stage == 'likelihood' else f' --start-from {folder}'}"
    )
