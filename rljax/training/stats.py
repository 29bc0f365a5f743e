"""What the head says of a model's tokens, wherever its table lies."""

from jax.sharding import Mesh

from pallas_kernels import TokenStats
from rljax.logprobs import token_logps
from rljax.models import Model


def stats_of(model: Model, params, hidden, tokens, mask, *, mesh: Mesh, temperature=1.0) -> TokenStats:
    """`logprobs.token_logps` with the model's own unembedding, as it is split over the mesh and with its padding."""
    return token_logps(
        hidden,
        model.padded_unembedding(params),
        tokens,
        mask,
        temperature=temperature,
        vocab_size=model.config.vocab_size,
        mesh=mesh,
        split=model.unembedding_split,
    )
