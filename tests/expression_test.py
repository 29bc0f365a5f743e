"""Algorithms as values and pytrees: equality, hash, repr, pickling, tracing, mapping and derivatives."""

import inspect
import pickle
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Carried, PolicyGradient, advantage, aggregation, algorithms, ratio
from tests.examples import ALGORITHMS, make

NAMES = sorted(ALGORITHMS)
ℓ, ONES, MASK = jnp.array([0.1, 0.3, -0.25]), jnp.ones(3), jnp.ones(3, bool)


@pytest.mark.parametrize("name", NAMES)
def test_an_algorithm_is_a_value(name):
    ours, again = make(name), make(name)
    assert ours == again
    assert hash(ours) == hash(again)
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert len({ours, again}) == 1
    assert ours != make("opo" if name != "opo" else "grpo")


@pytest.mark.parametrize("name", NAMES)
def test_its_leaves_are_its_floating_point_hyper_parameters(name):
    algorithm = make(name)
    leaves, tree = jax.tree.flatten(algorithm)
    assert all(isinstance(leaf, float) for leaf in leaves)
    numbers = {p.name for p in inspect.signature(getattr(algorithms, name)).parameters.values()} - {"top_k"}
    assert bool(leaves) >= bool(numbers)
    assert jax.tree.unflatten(tree, leaves) == algorithm
    for anything in (None, 0, object(), jax.ShapeDtypeStruct((), jnp.float32)):
        mapped = jax.tree.unflatten(tree, [anything] * len(leaves))  # unflatten does not validate
        assert jax.tree.structure(mapped, is_leaf=lambda x: x is None) == tree


def test_its_repr_is_the_expression_that_makes_it():
    assert repr(algorithms.gspo()) == (
        "PolicyGradient(advantage=group_relative, aggregation=sequence_mean, "
        "ratio=chain(sequence_mean, clip(low=0.0003, high=0.0004)))"
    )
    assert repr(algorithms.cppo()).endswith("least=0.8), top_k=20)")
    assert repr(algorithms.ctpo().ratio) == (
        "chain(local_gradient(cumulative), position_clip(log_low=0.025, log_high=0.05, log_dual=0.05, power=0.5))"
    )
    assert repr(algorithms.ppo().advantage) == "whitened(generalized_advantage_estimation(gamma=1.0, lam=0.95))"
    assert "carried=Carried(init=never, update=switch_dropping(low=0.5, high=1.0))" in repr(make("aepo"))
    assert repr(algorithms.grpo(low=jnp.array(0.5)).ratio) == "clip(low=0.5, high=0.2)"
    assert repr(algorithms.grpo(low=jnp.array([0.5, 0.25])).ratio) == "clip(low=array([0.5, 0.25]), high=0.2)"
    for name in NAMES:
        assert "0x" not in repr(make(name)), name


def clipped(**bounds):
    return PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(ratio.clip, **bounds))


def test_hyper_parameters_tell_algorithms_apart():
    assert algorithms.grpo(low=0.1) != algorithms.grpo()
    assert algorithms.grpo(low=0, high=1) == algorithms.grpo(low=0.0, high=1.0)  # integers become floats
    assert algorithms.dapo(dual=None) == algorithms.dapo()
    assert algorithms.dapo(dual=3.0) != algorithms.dapo()
    assert algorithms.cppo(top_k=20) != algorithms.cppo(top_k=21)
    arrays = [algorithms.grpo(low=jnp.array([0.1, x])) for x in (0.2, 0.2, 0.3)]
    assert arrays[0] == arrays[1] != arrays[2]
    assert hash(arrays[0]) == hash(arrays[1])
    assert algorithms.grpo() != "grpo"
    assert clipped(low=0.1, high=0.3) == clipped(high=0.3, low=0.1) != clipped(low=0.3, high=0.1)
    assert jax.tree.structure(clipped(low=0.1, high=0.3)) == jax.tree.structure(clipped(high=0.3, low=0.1))
    assert jax.tree.leaves(algorithms.dr_grpo(max_length=8)) == [8.0, 0.2, 0.2]


def test_a_repr_is_the_same_in_another_process():
    """Checkpoints store the repr, which does not depend on the process."""
    program = "from rljax import algorithms; print(repr(algorithms.aepo(entropy_low=0.25, entropy_high=0.5)))"
    printed = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
               for _ in range(2)}  # fmt: skip
    assert printed == {repr(algorithms.aepo(entropy_low=0.25, entropy_high=0.5)) + "\n"}


def test_traced_hyper_parameters_have_no_equality():
    def compared(algorithm):
        with pytest.raises(TypeError, match="expected concrete hyper-parameters"):
            assert algorithm == algorithms.grpo()
        with pytest.raises(TypeError, match="expected concrete hyper-parameters"):
            assert algorithm == algorithm  # raises even for the same object
        with pytest.raises(TypeError, match="expected concrete hyper-parameters"):
            hash(algorithm)
        return 0

    jax.jit(compared)(algorithms.grpo())


def test_two_values_of_a_bound_share_a_trace():
    traces = []

    @jax.jit
    def f(algorithm, ℓ):
        traces.append(1)
        return algorithm.ratio(ℓ, ONES, MASK)

    narrow, wide = (f(algorithms.grpo(high=high), ℓ) for high in (0.1, 0.2))
    assert len(traces) == 1
    np.testing.assert_allclose(np.exp(narrow).max(), 1.1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(wide).max(), 1.2, rtol=1e-6)
    f(algorithms.dapo(dual=3), ℓ)
    assert len(traces) == 2  # a new structure is traced again


def test_equal_static_arguments_share_a_trace():
    traces = []

    @partial(jax.jit, static_argnums=0)
    def f(algorithm, ℓ):
        traces.append(1)
        return algorithm.ratio(ℓ, ONES, MASK)

    for _ in range(2):
        f(algorithms.gspo(), ℓ)
    assert len(traces) == 1


@pytest.mark.parametrize("p", [-2.0, 0.0, 1e-3, 0.5, 3.0])
def test_the_derivative_by_p_is_exact(p):
    """Compared with central differences of the paper's equation in float64; at p = 0 it is half the variance of ℓ."""
    x = np.array([0.1, 0.3, -0.25])

    def value(p):
        return np.log(np.mean(np.exp(p * x))) / p if p else x.mean()

    h = 1e-4
    expected = (value(p + h) - value(p - h)) / (2 * h) if p else x.var() / 2
    with jax.enable_x64(True):
        found = jax.grad(lambda a: a.ratio(jnp.asarray(x), jnp.ones(3), MASK)[0])(algorithms.holder_po(p=p, high=9))
        by_p, by_low, by_high = jax.tree.leaves(found)
        np.testing.assert_allclose(by_p, expected, rtol=1e-6)
        assert by_low == by_high == 0  # the clip was not reached
    single = jax.grad(lambda p: ratio.power_mean(ℓ, ONES, MASK, p=p)[0])(p)
    np.testing.assert_allclose(single, expected, rtol=1e-4)


@pytest.mark.parametrize("p", [-2.0, 0.0, 1e-25, 3.0])
@pytest.mark.parametrize("dtype", [bool, jnp.int32])
def test_the_derivative_by_p_beside_a_sequence_without_tokens(p, dtype):
    x, mask = jnp.array([[0.1, 0.3, -0.25, 9.0], [0.0] * 4]), jnp.array([[True, True, True, False], [False] * 4])

    def slope(x, segments):
        return jax.grad(lambda p: ratio.power_mean(x, jnp.ones_like(x), segments, p=p).sum())(p)

    np.testing.assert_allclose(slope(x, mask.astype(dtype)), slope(x[:1, :3], mask[:1, :3]), rtol=1e-5)


def test_derivatives_by_bounds():
    def loss(algorithm):
        return algorithm.ratio(jnp.log(jnp.array([2.0, 0.25])), jnp.array([1.0, -1.0]), MASK[:2]).sum()

    by_low, by_high = jax.tree.leaves(jax.grad(loss)(algorithms.grpo(low=0.5, high=0.25)))
    np.testing.assert_allclose([by_low, by_high], [-1 / 0.5, 1 / 1.25], rtol=1e-6)  # of log(1 − low), log(1 + high)
    stopped = jax.grad(lambda a: a.ratio(ℓ, ONES, MASK).sum())(algorithms.cispo(high=0.1))
    assert jax.tree.leaves(stopped) == [0.0]


def test_stacked_algorithms_are_mapped():
    several = [algorithms.holder_po(p=p, high=9.0) for p in (-1.0, 0.0, 2.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *several)
    found = jax.jit(jax.vmap(lambda a: a.ratio(ℓ, ONES, MASK)))(stacked)
    for row, one in zip(found, several, strict=True):
        np.testing.assert_allclose(row, one.ratio(ℓ, ONES, MASK), rtol=1e-5)
    by_function = jax.vmap(lambda p: algorithms.holder_po(p=p, high=9.0).ratio(ℓ, ONES, MASK))(jnp.array([-1.0, 2.0]))
    np.testing.assert_allclose(by_function, found[::2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"p has shape \(3,\): expected one number"):
        stacked.ratio(ℓ, ONES, MASK)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: algorithms.grpo(low=None), r"low = None: expected a number in \[0, 1\)"),
        (lambda: algorithms.grpo(low=1.5), r"low = 1\.5: expected a number in \[0, 1\)"),
        (lambda: algorithms.dr_grpo(max_length=0), r"max_length = 0"),
        (lambda: algorithms.gspo(high=-1.0), r"high = -1\.0"),
        (lambda: algorithms.grpo(low=np.array([0.2, 1.5])), r"low = \[0\.2 1\.5\]"),
        (lambda: algorithms.ppo(gamma=99), r"gamma = 99"),
        (lambda: algorithms.holder_po(p=float("nan")), r"p = nan"),
        (lambda: algorithms.aepo(entropy_low=0.5, entropy_high=0.1), r"low = 0\.5: expected at most high = 0\.1"),
        (lambda: ratio.chain(partial(ratio.clip, low=-1, high=0.2)), r"low = -1"),
    ],
)
def test_hyper_parameters_are_checked_when_an_algorithm_is_built(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_what_is_not_a_function_or_not_a_parameter_is_refused():
    with pytest.raises(TypeError, match=r"PolicyGradient\.ratio = 0\.2: expected a function"):
        PolicyGradient(advantage.group_relative, aggregation.token_mean, 0.2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="lowest"):
        PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(ratio.clip, lowest=0.2))
    with pytest.raises(
        TypeError, match=r"PolicyGradient\.ratio = <lambda>: expected a function of \(log_ratio, advantages"
    ):
        PolicyGradient(advantage.group_relative, aggregation.token_mean, lambda log_ratio, A: log_ratio)
    with pytest.raises(TypeError, match=r"advantage = <lambda>: expected a function of \(rewards, mask\): missing"):
        PolicyGradient(lambda rewards, mask, gamma: gamma * mask, aggregation.token_mean, ratio.token)
    with pytest.raises(TypeError, match=r"carried = 3: expected a Carried"):
        PolicyGradient(advantage.group_relative, aggregation.token_mean, ratio.token, carried=3)  # pyright: ignore


class Counting:
    def init(self):
        return jnp.zeros((), jnp.int32)

    def update(self, state, rollouts):
        return rollouts, state + 1


def test_any_object_with_init_and_update_is_carried():
    counting = Counting()
    algorithm = PolicyGradient(advantage.group_relative, aggregation.token_mean, ratio.token, carried=counting)  # pyright: ignore[reportArgumentType]
    assert algorithm.carried == Carried(counting.init, counting.update)


def mine(log_ratio, advantages, segments, *, scale, power):
    return scale * log_ratio**power


def both(log_ratio, advantages, segments, *, ratios) -> jax.Array:
    return sum((f(log_ratio, advantages, segments) for f in ratios), jnp.zeros(()))


def test_user_defined_functions():
    """Plain functions and partials are valid; a partial's floats are leaves, its integers are structure."""
    algorithm = PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(mine, scale=2.0, power=3))
    assert jax.tree.leaves(algorithm) == [2.0]
    assert repr(algorithm.ratio) == "mine(scale=2.0, power=3)"
    np.testing.assert_allclose(jax.jit(lambda a: a.ratio(ℓ, ONES, MASK))(algorithm), 2 * ℓ**3, rtol=1e-6)
    assert algorithm == PolicyGradient(advantage.group_relative, aggregation.token_mean, algorithm.ratio)
    positional = PolicyGradient(advantage.group_relative, aggregation.token_mean, jax.tree_util.Partial(ratio.token))
    assert positional.ratio(ℓ, ONES, MASK) is not None
    pairs = [(partial(ratio.clip, low=0.25, high=0.5), ratio.token) for _ in range(2)]
    first, second = (PolicyGradient(advantage.group_relative, aggregation.token_mean, partial(both, ratios=pair))
                     for pair in pairs)  # fmt: skip
    assert first == second
    assert jax.tree.leaves(first) == [0.25, 0.5]
    assert repr(first.ratio) == "both(ratios=(clip(low=0.25, high=0.5), token))"
    plain = PolicyGradient(advantage.group_relative, aggregation.token_mean, lambda log_ratio, *_: log_ratio)
    assert plain == plain
    assert plain.ratio(ℓ, ONES, MASK) is ℓ
