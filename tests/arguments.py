"""Random arguments, by axes, for every public function that computes advantages, penalties, rewards or distillation.

`FUNCTIONS` is collected from the modules, so that no function is missed.
"""

import dataclasses
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rljax import Batch, advantage, distillation, divergence, penalty, ratio, regression, rewards
from tests.papers import random_mask

SIZES = {"P": 4, "G": 3, "T": 8, "K": 2, "N": 6, "D": 4, "V": 12}
AXES = {
    **dict.fromkeys(("log_ratio", "logp", "entropy", "values", "returns", "old_values", "proxy", "x"), "P G T"),
    **dict.fromkeys(("old_logp", "teacher_logp", "ref_logp", "advantages", "weights", "kl",
                     "entropy_coefficient"), "P G T"),
    **dict.fromkeys(("energy", "importance"), "P G T"),
    **dict.fromkeys(("rewards", "lengths"), "P G"),
    **dict.fromkeys(("student_logits", "teacher_logits"), "N K"),
    "components": "P G K", "coefficients": "K", "greedy_rewards": "P", "reference_rewards": "P N", "history": "N",
    "improvement": "", "hidden": "N D", "unembedding": "V D",
}  # fmt: skip
DIFFERENTIATED = {
    "k1": {"log_ratio"}, "k2": {"log_ratio"}, "k3": {"log_ratio"}, "straight_through": {"log_ratio"},
    "kl": {"logp"}, "kl_corrected": {"logp"}, "kl_cov": {"logp"}, "quadratic": {"logp"}, "a2po": {"logp"},
    "entropy_bonus": {"entropy"}, "adaptive_entropy": {"entropy"}, "exact_kl": {"kl"}, "value_loss": {"values"},
    "support_kl": {"student_logits"}, "support_loss": {"student_logits"}, "logits_at": {"hidden", "unembedding"},
}  # fmt: skip
"""The arguments that have a gradient; all others are constants."""


def differentiable(rewards, mask):
    """A user-defined advantage without stop_gradient."""
    return jnp.where(mask, rewards[..., None], 0.0)


MODULES = (advantage, penalty, rewards, divergence, distillation, regression)
COMBINATORS = {
    "standardized": advantage.standardized(differentiable),
    "straight_through": penalty.straight_through(penalty.k3),
    "whitened": advantage.whitened(differentiable),
    "without_negatives": advantage.without_negatives(differentiable),
}
FUNCTIONS = {
    name: COMBINATORS.get(name, f)
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(f := getattr(module, name))
}
BOUND = {
    "clip_cov": {"share": 0.3, "low": 0.1}, "kl_cov": {"share": 0.3}, "value_loss": {"limit": 0.3},
    "overlong_penalty": {"max_length": 2.0, "buffer": 4.0}, "confident_negatives": {"threshold": 0.2},
    "hysteresis": {"low": 0.2, "high": 0.3}, "top_tokens": {"k": 3}, "ordinary": {"special": (1, 2)},
    "length_shaping": {"share": 0.5}, "a2po": {"beta": 0.5},
}  # fmt: skip


def random(axes: str, seed: int, sizes=SIZES) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[sizes[axis] for axis in axes.split()])


def arguments(name: str, sizes=SIZES) -> dict:
    floats = {name: random(axes, seed, sizes) for seed, (name, axes) in enumerate(AXES.items())}
    ids = np.random.default_rng(0).integers(0, sizes["V"], (sizes["N"], sizes["K"])).astype(np.int32)
    mask = random_mask(np.random.default_rng(1), [sizes[axis] for axis in "PGT"])
    mask[:, :, 0] = True
    fields = {field.name for field in dataclasses.fields(Batch)} & floats.keys()
    others = {
        "mask": mask,
        "batch": Batch(mask=mask, **{field: floats[field] for field in fields}),
        "tokens": np.random.default_rng(2).integers(0, 3, mask.shape).astype(np.int32),
        "task": (np.arange(sizes["P"]) % 2).astype(np.int32),
        "dropping": np.array(True), "key": jax.random.key(0), "ratio": ratio.token, "ids": ids, "teacher_ids": ids,
        "student_ids": ids[::-1], "support": distillation.Support(ids, ids >= 2),
    }  # fmt: skip
    if name == "support_loss":
        floats["weights"] = random("N", 99, sizes)
    if name == "total_variation":
        floats |= {"logp": -np.abs(random("N K", 97, sizes)), "old_logp": -np.abs(random("N K", 98, sizes))}
    if name == "hysteresis":
        floats["entropy"] = random("", 96, sizes)
    known = floats | others
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    given = {p.name: known[p.name] for p in parameters if p.name in known and p.name not in BOUND.get(name, {})}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in known | BOUND.get(name, {})]
    assert not missing, f"{name} requires {missing}: add them here"
    return given


def call(name: str):
    return partial(FUNCTIONS[name], **BOUND.get(name, {}))


def floating(tree) -> dict[str, np.ndarray]:
    """The floating arrays of arguments by path, such as `batch.weights`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): x
        for path, x in leaves
        if isinstance(x, np.ndarray) and x.dtype == float
    }


def replaced(tree, **arrays):
    def one(path, x):
        return arrays.get(jax.tree_util.keystr(path, simple=True, separator="."), x)

    return jax.tree_util.tree_map_with_path(one, tree)
