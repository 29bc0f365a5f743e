"""token_topk with vocabulary and tokens sharded over 8 simulated devices, against one device."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import token_topk
from pallas_kernels.token_topk import chunked
from tests.kernels.heads import close, example

N, D, V, SIZE, K = 32, 16, 48, 43, 8  # tokens, width, rows of the weight, columns that are not padding; K > V/8
MESHES = [(1, 8), (2, 4), (8, 1)]  # data, tensor


@cache
def head():
    """A head with repeated rows of weight and bias, so that equal logits are in different shards; sums are exact."""
    hidden, unembedding, targets = map(np.asarray, example(N, D, V, jnp.float32))
    hidden, unembedding, rows = np.round(2 * hidden) / 8, np.round(2 * unembedding), np.arange(V) % 11
    return hidden, unembedding[rows], np.linspace(-1, 5, 49, dtype=np.float32)[rows], targets, np.arange(N) % 5 > 0


def run(hidden, unembedding, bias, targets, mask, k=K, **options):
    return token_topk(
        hidden, unembedding, targets, bias=bias, mask=mask, vocab_size=SIZE, k=k, temperature=0.5, **options
    )


def sharded(mesh_shape, implementation, check, k=K):
    mesh = jax.make_mesh(mesh_shape, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    function = partial(run, k=k, axis_name="tensor", tile=(8, 5), implementation=implementation)
    specs = P("data"), P("tensor"), P("tensor"), P("data"), P("data")
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=check)


@cache
def on_one_device(k=K):
    return jax.jit(partial(run, k=k, implementation="reference"))(*head())


@cache
def on_mesh(mesh):
    """{implementation: [results without and with check_vma]}, from one program."""
    functions = [[sharded(mesh, name, check) for check in (False, True)] for name in ("chunked", "reference")]
    chunked, reference = jax.jit(lambda *x: [[function(*x) for function in pair] for pair in functions])(*head())
    return {"chunked": chunked, "reference": reference}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("implementation", ["chunked", "reference"])
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_sharded_vocabulary_gives_the_results_of_one_device(mesh, implementation, check):
    is_the_whole_one(on_mesh(mesh)[implementation][check])


def is_the_whole_one(found):
    expected = on_one_device()
    np.testing.assert_array_equal(found[1].ids, expected[1].ids)
    close(found, expected, 1e-6)
    assert len(set(np.ravel(found[1].ids) // (V // 8))) > 4
    assert np.mean(np.diff(found[1].logp) == 0) > 0.5


def test_all_tokens_of_a_vocabulary_whose_last_shard_is_padding():
    expected, found = on_one_device(SIZE), jax.jit(sharded((1, 8), "chunked", True, SIZE))(*head())
    np.testing.assert_array_equal(found[1].ids, expected[1].ids)
    close(found, expected, 1e-6)


def test_outputs_are_alike_on_all_shards():
    mesh = jax.make_mesh((8,), ("tensor",), axis_types=(AxisType.Auto,))
    function = partial(run, axis_name="tensor", implementation="chunked")
    own = jax.shard_map(lambda *x: jax.tree.map(lambda y: y[None], function(*x)), mesh=mesh, check_vma=False,
                        in_specs=(P(), P("tensor"), P("tensor"), P(), P()), out_specs=P("tensor"))  # fmt: skip
    for part in jax.tree.leaves(jax.jit(own)(*head())):
        assert part.shape[0] == 8
        np.testing.assert_array_equal(part, np.broadcast_to(part[:1], part.shape))


def own_alone(best, axis_name):
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, to="invarying")[0], best)


def local_ids(best, axis_name, best_over=chunked.best_over):
    rows = V // lax.axis_size(axis_name)
    return best_over(best._replace(ids=best.ids - lax.axis_index(axis_name) * rows), axis_name)


def shards_backwards(best, axis_name):
    ids, x = (lax.all_gather(part, axis_name, to="invarying")[::-1] for part in best)
    ids, x = (jnp.moveaxis(part, 0, 1).reshape(best.x.shape[0], -1) for part in (ids, x))
    x, places = lax.top_k(x, best.x.shape[1])
    return chunked.Best(jnp.take_along_axis(ids, places, axis=1), x)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("best_over", own_alone),
        ("best_over", local_ids),
        ("best_over", shards_backwards),
        ("joined_over", lambda sums, axis_name: jax.tree.map(lambda x: lax.pmax(x, axis_name), sums)),
        ("shard", lambda vocabulary, axis_name, rows: (lax.axis_index(axis_name) * rows, rows)),
    ],
)
def test_mutants_fail(monkeypatch, name, mutant):
    on_one_device()  # cache the results without the mutant
    monkeypatch.setattr(chunked, name, mutant)
    for check, words in ((True, None), (False, "not equal"))[: 1 + (name == "best_over")]:
        found = jax.jit(sharded((1, 8), "chunked", check))(*head())
        with pytest.raises(AssertionError, match=words):
            is_the_whole_one(found)
