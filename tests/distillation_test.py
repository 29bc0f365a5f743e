import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import distillation
from rljax.distillation import Support
from tests.together import together


def random_case(seed=0, n=6, d=5, v=40):
    rng = np.random.default_rng(seed)
    student, teacher = ((rng.normal(size=(n, d)), rng.normal(size=(v, d))) for _ in range(2))
    return student, teacher, rng.uniform(0.5, 1.5, n)


def kl_by_loops(student, teacher, ids, valid):
    out = np.zeros(len(ids))
    for n, (row, ok) in enumerate(zip(ids, valid, strict=True)):
        x, z = (np.array([h[n] @ w[i] for i in row[ok]]) for h, w in (student, teacher))
        if len(x):
            pi, q = np.exp(x) / np.exp(x).sum(), np.exp(z) / np.exp(z).sum()
            out[n] = sum(a * np.log(a / b) for a, b in zip(pi, q, strict=True))
    return out


TOP_TOKENS = jax.jit(distillation.top_tokens, static_argnames=("k", "tile"))


@together
def supports(student, teacher):
    (ids, _), (own, _) = (distillation.top_tokens(*model, k=4) for model in (teacher, student))
    return {
        "teachers": distillation.teachers(ids),
        "students": distillation.students(own),
        "intersection": distillation.intersection(ids, own),
        "union": distillation.union(ids, own),
    }


@jax.jit
def loss_and_gradients(student, teacher, weights, support):
    def loss(student):
        logits, goal = (distillation.logits_at(*model, support.ids) for model in (student, teacher))
        return distillation.support_loss(logits, goal, weights, support=support)

    return jax.value_and_grad(loss)(student)


@pytest.mark.parametrize("tile", [4, 7, 40, 1000])
def test_top_tokens_are_those_of_the_dense_logits(tile):
    (hidden, unembedding), *_ = random_case()
    with jax.enable_x64(True):
        ids, logits = TOP_TOKENS(hidden, unembedding, k=4, tile=tile)
    dense = hidden @ unembedding.T
    np.testing.assert_array_equal(ids, np.argsort(-dense, axis=1)[:, :4])
    np.testing.assert_allclose(logits, -np.sort(-dense, axis=1)[:, :4], rtol=1e-12)


def test_as_many_top_tokens_as_there_are_tokens_are_all_of_them():
    ids, _ = TOP_TOKENS(np.zeros((1, 2), np.float32), np.ones((5, 2), np.float32), k=5, tile=2)
    assert sorted(np.asarray(ids)[0]) == [0, 1, 2, 3, 4]


def test_top_tokens_never_hold_all_logits():
    shapes = jnp.zeros((512, 8)), jnp.zeros((32768, 8))
    compiled = jax.jit(lambda h, w: distillation.top_tokens(h, w, k=8, tile=1024)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.3 * 512 * 32768 * 4


@pytest.mark.parametrize("name", ["teachers", "students", "intersection", "union"])
def test_the_loss_is_its_formula_and_its_gradient_the_differences(name):
    student, teacher, weights = random_case()
    with jax.enable_x64(True):
        support = supports(student, teacher)[name]
        value, gradients = loss_and_gradients(student, teacher, weights, support)
        expected = np.sum(weights * kl_by_loops(student, teacher, *support))
        np.testing.assert_allclose(value, expected, rtol=1e-11)
        step = np.random.default_rng(1).normal(size=student[0].shape), np.random.default_rng(2).normal(size=(40, 5))
        moved = [tuple(x + s * 1e-5 * e for x, e in zip(student, step, strict=True)) for s in (1, -1)]
        ahead, behind = (loss_and_gradients(x, teacher, weights, support)[0] for x in moved)
        slope = sum(np.sum(g * e) for g, e in zip(gradients, step, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / 2e-5, rtol=1e-6)
        assert abs(slope) > 1e-3


def test_supports_by_hand():
    teacher, student = jnp.array([[3, 1, 4]]), jnp.array([[4, 9, 3]])
    both, either = distillation.intersection(teacher, student), distillation.union(teacher, student)
    np.testing.assert_array_equal(np.asarray(both.ids)[np.asarray(both.valid)], [3, 4])
    np.testing.assert_array_equal(np.asarray(either.ids)[np.asarray(either.valid)], [3, 1, 4, 9])


def test_worked_divergence_and_what_invalid_entries_hold():
    """π̂ = (½, ½) and q̂ = (¾, ¼): KL = ½ log(4/3)."""
    support = Support(np.array([[0, 1, 2]], np.int32), np.array([[True, True, False]]))
    nothing = support._replace(valid=np.zeros((1, 3), bool))
    student, teacher = np.array([[0.0, 0.0, np.nan]], np.float32), np.array([[np.log(3.0), 0.0, np.inf]], np.float32)

    @jax.jit
    def run(student, teacher, support):
        kl = jax.value_and_grad(lambda x: distillation.support_kl(x, teacher, support)[0])(student)
        return kl, distillation.support_loss(student * jnp.nan, teacher, jnp.zeros(1), support=support)

    (kl, gradient), loss = run(student, teacher, support)
    np.testing.assert_allclose(kl, 0.5 * np.log(4 / 3), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-np.log(3) / 4, np.log(3) / 4, 0]], rtol=1e-6)
    assert loss == 0
    assert run(student, teacher, nothing)[0][0] == 0


def test_the_teacher_has_no_gradient_and_is_the_minimum():
    (hidden, unembedding), *_ = random_case()
    ids = np.arange(24, dtype=np.int32).reshape(6, 4)
    support = distillation.teachers(ids)

    @jax.jit
    def gradients(student, teacher):
        student, teacher = (distillation.logits_at(*model, ids) for model in (student, teacher))
        return jax.grad(lambda *x: jnp.sum(distillation.support_kl(*x, support)), (0, 1))(student, teacher)

    for gradient in gradients((hidden, unembedding), (hidden, unembedding)):
        np.testing.assert_allclose(gradient, np.zeros((6, 4)), atol=1e-6)
    moved = gradients((hidden, unembedding), (hidden, unembedding + np.arange(40)[:, None]))[1]
    np.testing.assert_array_equal(moved, np.zeros((6, 4)))


def test_the_sampled_token_advantage_is_the_log_ratio_of_the_teacher():
    mask = jnp.array([[[True, False]]])
    A = distillation.sampled_token(jnp.array([[[-2.0, jnp.nan]]]), jnp.array([[[-0.5, 1.0]]]), mask)
    np.testing.assert_array_equal(A, [[[1.5, 0.0]]])


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"k = 9: expected an integer in \[1, 5\]"):
        distillation.top_tokens(jnp.zeros((2, 3)), jnp.zeros((5, 3)), k=9)
    support = distillation.teachers(jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(ValueError, match=r"teacher_logits has shape \(2, 2\)"):
        distillation.support_kl(jnp.zeros((2, 3)), jnp.zeros((2, 2)), support)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\): expected \(2,\)"):
        distillation.support_loss(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(3), support=support)
    with pytest.raises(ValueError, match="old_logp has shape"):
        distillation.sampled_token(jnp.zeros((1, 1, 2)), jnp.zeros((1, 1, 3)), jnp.ones((1, 1, 3), bool))


def test_special_tokens_are_left_out_of_the_mask():
    mask = jnp.array([[True, True, False, True]])
    kept = distillation.ordinary(mask, jnp.array([[5, 1, 5, 2]], jnp.int32), special=(1, 2))
    np.testing.assert_array_equal(kept, [[True, False, False, False]])
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 3\): expected \(1, 4\)"):
        distillation.ordinary(mask, jnp.zeros((1, 3), jnp.int32), special=(1,))
