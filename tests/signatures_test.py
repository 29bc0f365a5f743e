"""Type annotations of public functions, checked at run time."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, jaxtyped

import pallas_kernels
from rljax import (
    Batch,
    advantage,
    aggregation,
    correction,
    distillation,
    divergence,
    logprobs,
    metrics,
    objective,
    penalty,
    ratio,
    regression,
    rewards,
    schedule,
)  # fmt: skip

CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accepts int for float
MODULES = (
    ratio, advantage, aggregation, penalty, metrics, rewards, correction, distillation, divergence, regression,
    schedule, logprobs, pallas_kernels,
)  # fmt: skip
FUNCTIONS = {
    f"{module.__name__}.{name}": function
    for module in MODULES
    for name in module.__all__
    if inspect.isfunction(function := getattr(module, name))
} | {"rljax.objective.policy_loss": objective.policy_loss}
COMBINATORS = (
    "advantage_of_kept",
    "aggregation_of_kept",
    "chain",
    "local_gradient",
    "power",
    "standardized",
    "straight_through",
    "whitened",
    "weighted",
    "without_negatives",
)  # return functions, whose results are tested below

P, G, T, V, D = 2, 3, 5, 11, 7


def array(x, dtype=jnp.float32):
    return jnp.asarray(np.asarray(x, dtype))


def ones(*shape, dtype=jnp.float32):
    return array(np.ones(shape), dtype)


TOKENS = array(np.linspace(-1.0, 1.0, P * G * T).reshape(P, G, T))
MASK = array(np.arange(P * G * T).reshape(P, G, T) % 4 > 0, bool)
BATCH = Batch(mask=MASK, old_logp=TOKENS, advantages=TOKENS, weights=TOKENS, ref_logp=array(-np.asarray(TOKENS)),
              entropy_coefficient=ones(P, G, T))  # fmt: skip
LOGITS, IDS = ones(4, 3), array(np.arange(12).reshape(4, 3) % V, jnp.int32)
SUPPORT = distillation.Support(IDS, ones(4, 3, dtype=bool))
SUMS, POSITIONS = (
    jax.jit(f, static_argnums=2)(TOKENS, BATCH, ratio.token) for f in (metrics.policy_sums, metrics.position_sums)
)
ARGUMENTS = dict.fromkeys(
    (
        "log_ratio",
        "advantages",
        "logp",
        "entropy",
        "values",
        "returns",
        "old_values",
        "proxy",
        "x",
        "energy",
        "old_logp",
        "divergence",
        "mismatch",
        "weights",
    ),
    TOKENS,
) | {
    "segments": MASK,
    "mask": MASK,
    "batch": BATCH,
    "ratio": ratio.token,
    "rewards": array(np.asarray(TOKENS)[:, :, 0]),
    "sign": array([[1, 0, -1], [0, 1, 1]], jnp.int32),
    "sums": SUMS,
    "lengths": array([3, 4], jnp.int32),
    "key": jax.random.key(0),
    "hidden": ones(4, D),
    "unembedding": ones(V, D),
    "targets": array(np.arange(4), jnp.int32),
    "segment_ids": array(MASK, jnp.int32),
    "tokens": array(MASK, jnp.int32),
    "reference_rewards": array(np.asarray(TOKENS)[:, 0, :4]),
    "components": array(np.asarray(TOKENS)[..., :2]),
    "greedy_rewards": array(np.asarray(TOKENS)[:, 0, 0]),
    "task": array(np.arange(P), jnp.int32),
    "history": array(np.asarray(TOKENS)[0, 0]),
    "improvement": 0.5,
    "dropping": jnp.array(True),
    "threshold": 0.5,
    "teacher_logp": TOKENS,
    "ids": IDS,
    "teacher_ids": IDS,
    "student_ids": IDS,
    "student_logits": LOGITS,
    "teacher_logits": LOGITS,
    "support": SUPPORT,
    "k": 3,
    "gradient_norm": jnp.float32(1.0),
    "slack": 0.1,
    "max_length": 12,
    "buffer": 4,
    "limit": 0.3,
    "low": 0.2,
    "log_low": 0.2,
    "log_high": 0.2,
    "high": 0.3,
    "p": 1.5,
    "kl": TOKENS,
    "special": (1, 2),
    "step": 3,
    "start": 2.0,
    "end": -2.0,
    "steps": 5,
    "s": jnp.float32(0.5),
}
ROWS = {"hidden": ones(2, 5, D), "unembedding": ones(V, D), "tokens": ones(2, 5, dtype=jnp.int32)}
ROWS |= {"mask": ones(2, 5, dtype=bool)}


OTHERWISE = {
    distillation.support_loss: {"weights": ones(4)},
    logprobs.token_logps: ROWS,
    logprobs.token_kls: {name: ROWS[name] for name in ("hidden", "unembedding", "mask")}
    | {"ref_hidden": ROWS["hidden"], "ref_unembedding": ROWS["unembedding"]},
    logprobs.logps_at: {name: ROWS[name] for name in ("hidden", "unembedding", "tokens")}
    | {"ids": ones(2, 5, 3, dtype=jnp.int32), "logp": ones(2, 5)},
    logprobs.preceding: {"hidden": ROWS["hidden"]},
    logprobs.delayed: {"x": ones(2, 5)},
    pallas_kernels.token_kl: {
        "ref_hidden": ones(4, 2),
        "ref_unembedding": ones(V, 2),
        "mask": array(np.asarray(MASK)[0, 0, :4], bool),
    },
    metrics.position_summary: {"sums": POSITIONS},
}


@cache
def checked(function):
    return jaxtyped(function, typechecker=CHECKER)


def call(function, **replaced):
    parameters = inspect.signature(function).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    arguments = {name: ARGUMENTS.get(name) for name in required} | OTHERWISE.get(function, {})
    with jax.numpy_dtype_promotion("standard"):
        return jax.eval_shape(lambda: checked(function)(**arguments | replaced))


every_function = pytest.mark.parametrize(
    "function", [pytest.param(f, id=name) for name, f in FUNCTIONS.items() if name.split(".")[-1] not in COMBINATORS]
)


@every_function
def test_arguments_and_result_are_as_annotated(function):
    assert len(FUNCTIONS) > 35
    assert jax.tree.leaves(call(function))


@every_function
def test_every_parameter_is_annotated(function):
    for name in inspect.signature(function).parameters:
        with pytest.raises(TypeCheckError, match=f"typechecking parameter '{name}'"):
            call(function, **{name: object()})


@pytest.mark.parametrize("made", [
    ratio.chain(ratio.token, ratio.sequence_mean), ratio.local_gradient(ratio.cumulative),
    partial(ratio.power_mean, p=0),
])  # fmt: skip
def test_what_combinators_make_is_a_ratio(made):
    value = jax.eval_shape(made, TOKENS, TOKENS, MASK)
    assert value.shape == TOKENS.shape
    assert value.dtype == jnp.float32


def test_a_wrong_annotation_is_noticed():
    def pooled(log_ratio: ratio.pools.Tokens) -> ratio.pools.Tokens:
        return log_ratio.mean(-1)

    with pytest.raises(TypeCheckError, match="return value"):
        call(pooled)
