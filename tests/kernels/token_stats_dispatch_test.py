"""The implementation of token_stats in a lowered program, by platform and by name."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pallas_kernels import token_stats
from tests.kernels.heads import enable_x64

PLATFORM = {"cpu": "chunked", "tpu": "tpu", "cuda": "gpu"}


def implementations(platform, dtype=jnp.bfloat16, gradients=True, **options):
    """(implementation scopes, number of Mosaic kernels) in the program lowered for any platform."""

    def loss(hidden, unembedding):
        return sum(map(jnp.sum, token_stats(hidden, unembedding, jnp.zeros(256, jnp.int32), **options)))

    shapes = jax.ShapeDtypeStruct((256, 64), dtype), jax.ShapeDtypeStruct((512, 64), dtype)
    program = jax.jit(jax.grad(loss, (0, 1)) if gradients else loss)
    text = program.trace(*shapes).lower(lowering_platforms=(platform,)).as_text(debug_info=True)
    return set(re.findall(r"token_stats_(reference|chunked|tpu|gpu)\b[/)]", text)), text.count("tpu_custom_call")


@pytest.mark.parametrize("platform", PLATFORM)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_each_platform_takes_its_own(platform, dtype):
    found, kernels = implementations(platform, dtype)
    assert found == {PLATFORM[platform]}
    assert kernels == (3 if platform == "tpu" else 0)  # forward, ∂hidden, ∂unembedding


def test_a_forward_pass_has_no_gradients_in_it():
    assert implementations("tpu", gradients=False) == ({"tpu"}, 1)


@pytest.mark.parametrize("platform", PLATFORM)
def test_float64_is_for_tiles_under_xla(platform):
    with enable_x64():
        found, kernels = implementations(platform, jnp.float64)
    assert found == ({"gpu"} if platform == "cuda" else {"chunked"})
    assert kernels == 0


def test_a_named_implementation_is_used():
    for name, kernels in {"tpu": 3, "chunked": 0, "reference": 0}.items():
        assert implementations("tpu", implementation=name) == ({name}, kernels)


@pytest.mark.parametrize(
    ("name", "platform", "device"),
    [
        ("tpu", "cpu", "a TPU"),
        ("tpu", "cuda", "a TPU"),
        ("gpu", "cpu", "an NVIDIA GPU"),
        ("gpu", "tpu", "an NVIDIA GPU"),
    ],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_another_platform_is_an_error_that_names_the_device(name, platform, device, gradients):
    with pytest.raises(NotImplementedError, match=f"implementation = '{name}': expected {device}, not {platform}"):
        implementations(platform, implementation=name, gradients=gradients)


def test_without_jit_too():
    with pytest.raises(NotImplementedError, match="token_stats: implementation = 'tpu': expected a TPU, not cpu"):
        token_stats(jnp.ones((4, 8)), jnp.ones((16, 8)), jnp.zeros(4, jnp.int32), implementation="tpu")


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_name_within_a_shard_map(check_vma):
    mesh = jax.make_mesh((4,), ("v",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def shard(hidden, unembedding, targets):
        return token_stats(hidden, unembedding, targets, axis_name="v", implementation="tpu")

    run = jax.shard_map(shard, mesh=mesh, in_specs=(P(), P("v"), P()), out_specs=P(), check_vma=check_vma)
    shapes = [((16, 8), P(), jnp.float32), ((32, 8), P("v"), jnp.float32), ((16,), P(), jnp.int32)]
    given = [jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec)) for size, spec, dtype in shapes]
    traced = jax.jit(jax.grad(lambda *inputs: jnp.sum(run(*inputs).logp))).trace(*given)
    assert "tpu_custom_call" in traced.lower(lowering_platforms=("tpu",)).as_text()
    with pytest.raises(NotImplementedError, match="implementation = 'tpu': expected a TPU, not cpu"):
        traced.lower(lowering_platforms=("cpu",))
