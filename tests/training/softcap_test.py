import jax
import numpy as np

from rljax.training.step.scoring import Scorer
from tests.models.small import VARIANTS, make, mesh_of, packed_rows

MODEL = VARIANTS["gemma"]
BANNED = (3,)


def _log_pi(hidden, table, temperature):
    """log π [B, T, V] of the token after each hidden state, in NumPy float64."""
    z = np.float64(hidden) @ np.float64(table).T
    x = MODEL.softcap * np.tanh(z / MODEL.softcap) / temperature
    x[..., BANNED] = -np.inf
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_soft_cap_of_the_head_is_in_every_score():
    (model, params), (_, others) = make(MODEL), make(MODEL, seed=1)
    scorer = Scorer(model, mesh_of((1, 1, 1)), temperature=0.7, banned=BANNED)
    tokens, segment_ids = packed_rows()
    tokens = np.where(tokens == BANNED[0], 4, tokens)
    mask = segment_ids != 0

    @jax.jit
    def scored(params, others):
        hidden, theirs = (model.hidden(p, tokens, segment_ids) for p in (params, others))
        stats, new = scorer.stats(params, hidden, tokens, mask), scorer.stats(others, theirs, tokens, mask)
        likeliest = scorer.likeliest(params, hidden, tokens, stats.logp, 20)
        kl = scorer.kl(params, hidden, others, tokens, segment_ids, mask)
        return hidden, theirs, stats, likeliest, scorer.divergence(others, theirs, tokens, new.logp, likeliest), kl

    hidden, theirs, stats, likeliest, divergence, kl = jax.device_get(scored(params, others))
    p, q = (_log_pi(h, w["embedding"][:11], 0.7)[:, :-1] for h, w in ((hidden, params), (theirs, others)))
    among, allowed = mask[:, 1:], np.delete(np.arange(11), BANNED)
    expected = np.take_along_axis(p, tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(stats.logp[:, 1:][among], expected[among], atol=1e-5)
    few = np.take_along_axis(p, likeliest.ids[:, 1:], -1)
    np.testing.assert_allclose(likeliest.logp[:, 1:][among], few[among], atol=1e-5)
    p, q = p[..., allowed], q[..., allowed]
    np.testing.assert_allclose(divergence[:, 1:][among], 0.5 * np.abs(np.exp(p) - np.exp(q)).sum(-1)[among], atol=1e-5)
    np.testing.assert_allclose(kl[:, 1:][among], (np.exp(p) * (p - q)).sum(-1)[among], atol=1e-5)
