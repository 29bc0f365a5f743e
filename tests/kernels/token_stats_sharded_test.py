"""token_stats with vocabulary, width and tokens sharded over 8 simulated devices, against one device."""

import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import TokenStats, token_stats
from pallas_kernels._vocabulary import vjp
from tests.kernels.heads import close, example, weights

MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4), (4, 1, 2), (2, 4, 1)]  # data, fsdp, tensor
N, D, V, SIZE = 32, 16, 48, 43  # tokens, width, rows of the weight, columns that are not padding
LAYOUTS = [  # mesh, implementation, check_vma
    (mesh, implementation, check)
    for mesh, (implementation, check) in zip(
        itertools.cycle(MESHES), [*itertools.product(("chunked", "reference", None), (True, False))] * 3, strict=False
    )
]


@cache
def head():
    hidden, unembedding, targets = map(np.asarray, example(N, D, V, jnp.float32))
    return hidden, unembedding, np.linspace(-1, 1, V, dtype=np.float32), targets, np.arange(N) % 5 > 0


def statistics(hidden, unembedding, bias, targets, mask, **options):
    return token_stats(hidden, unembedding, targets, bias=bias, mask=mask, vocab_size=SIZE, softcap=3.0,
                       temperature=0.8, **options)  # fmt: skip


def gradients(function):
    weight = weights(N, dtype=jnp.float32)

    def total(*inputs):
        stats = function(*inputs)
        return sum(jnp.sum(weight[name] * getattr(stats, name)) for name in weight), stats

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))


def sharded(mesh_shape, implementation, check, tile=(8, 8)):
    mesh = jax.make_mesh(mesh_shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rows = P(("data", "fsdp"))
    run = partial(statistics, axis_name="tensor", width_axis="fsdp", tile=tile, implementation=implementation)
    specs = rows, P("tensor", "fsdp"), P("tensor"), rows, rows
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=check)


@cache
def expected():
    return gradients(partial(statistics, implementation="reference"))(*head())


# The first seven layouts cover every mesh, and every implementation with and without check_vma.
@pytest.mark.parametrize(
    ("mesh", "implementation", "check"),
    [*LAYOUTS[:7], *(pytest.param(*layout, marks=pytest.mark.slow) for layout in LAYOUTS[7:])],
    ids=str,
)
def test_a_sharded_head_gives_the_results_of_one_device(mesh, implementation, check, monkeypatch):
    monkeypatch.setattr(vjp, "SLAB", 4 * D)  # several slabs, the last one smaller
    truth = expected()
    assert all(np.abs(gradient).max() > 0.1 for gradient in truth[0])
    close(gradients(sharded(mesh, implementation, check))(*head()), truth, 1e-6)


def test_without_jit():
    close(sharded((2, 2, 2), "chunked", True)(*head()), expected()[1], 1e-6)


def test_bfloat16_gradients_are_summed_over_slabs_in_float32(monkeypatch):
    _, unembedding, bias, targets, mask = head()
    hidden, unembedding = (x.astype(jnp.bfloat16) for x in (head()[0], unembedding))
    exact = gradients(partial(statistics, implementation="reference"))
    (truth, *_), _ = exact(hidden.astype(np.float32), unembedding.astype(np.float32), bias, targets, mask)

    def error(slab):
        monkeypatch.setattr(vjp, "SLAB", slab)
        (found, *_), _ = gradients(sharded((1, 8, 1), "chunked", True))(hidden, unembedding, bias, targets, mask)
        return np.linalg.norm(np.asarray(found, np.float32) - truth)

    assert error(D) <= 1.2 * error(V * D)


def unscaled(sums, axis_name):
    return sums._replace(**{name: lax.psum(getattr(sums, name), axis_name) for name in sums._fields[1:]},
                         top=lax.pmax(sums.top, axis_name))  # fmt: skip


def first_shard(targets, begin, columns):
    return jnp.where(targets < columns, targets, -1)


def all_columns(vocabulary, axis_name, rows):
    return lax.axis_index(axis_name) * rows, rows


@pytest.mark.parametrize(
    ("name", "mutant"), [("joined_over", unscaled), ("localized", first_shard), ("shard", all_columns)]
)
def test_mutants_fail(monkeypatch, name, mutant):
    monkeypatch.setattr(vjp, name, mutant)
    with pytest.raises(AssertionError):
        test_a_sharded_head_gives_the_results_of_one_device((2, 2, 2), "chunked", True, monkeypatch)


def test_one_maximum_and_one_sum_over_the_vocabularys_axis():
    text = str(jax.make_jaxpr(sharded((1, 1, 8), "chunked", True))(*head()))
    assert text.count("pmax[") == 1
    assert text.count("psum") == 1


@pytest.mark.parametrize("names", [("logp",), ("entropy",), ("proxy",), ("logp", "proxy")], ids="+".join)
@pytest.mark.parametrize("check", [True, False])
def test_outputs_that_are_not_read(names, check):
    """Cotangents of unused outputs are symbolic zeros, which psum does not accept."""
    hidden, unembedding, _, targets, _ = head()
    mesh = jax.make_mesh((4,), ("tensor",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    weight = weights(N, names, jnp.float32)

    specs = {"in_specs": (P(), P("tensor"), P()), "out_specs": P()}

    def gradients_of(function):
        def loss(hidden, unembedding):
            stats = function(hidden, unembedding, targets)
            return sum(jnp.sum(weight[name] * getattr(stats, name)) for name in names)

        return jax.jit(jax.grad(loss, (0, 1)))(hidden, unembedding)

    def shard(hidden, unembedding, targets):
        stats = token_stats(hidden, unembedding, targets, tile=(8, 8), axis_name="tensor")
        return TokenStats(*(getattr(stats, name) if name in names else None for name in TokenStats._fields))

    truth = gradients_of(partial(token_stats, implementation="reference"))
    assert all(np.abs(gradient).max() > 0.1 for gradient in truth)
    close(gradients_of(jax.shard_map(shard, mesh=mesh, check_vma=check, **specs)), truth, 3e-6)  # cancellation
