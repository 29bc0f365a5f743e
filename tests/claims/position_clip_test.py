"""CTPO's bounds (2605.07331): the spread of the cumulative log-ratio grows as √t, its mean as −KL·t. A simulation."""

import numpy as np


def cumulative_log_ratios(kl=5e-3, length=4096, rows=2000, seed=0):
    """Σ_{j≤t} ℓ_j of tokens drawn from 50 categorical pairs of old and new, each at that KL(old ‖ new)."""
    rng = np.random.default_rng(seed)
    old = rng.dirichlet(np.ones(20), 50)
    noise = rng.normal(size=old.shape)
    scales = np.full((50, 1), 0.1)
    for _ in range(30):  # to the KL wanted
        new = old * np.exp(scales * noise)
        new /= new.sum(-1, keepdims=True)
        scales *= np.sqrt(kl / np.sum(old * np.log(old / new), -1, keepdims=True))
    kinds = rng.integers(0, 50, (rows, length))
    picks = (rng.random((rows, length))[..., None] > np.cumsum(old, -1)[kinds]).sum(-1) if rows * length < 1e6 else None
    if picks is None:
        picks = np.empty((rows, length), np.int64)
        for k in range(50):
            here = kinds == k
            picks[here] = rng.choice(20, here.sum(), p=old[k])
    return np.cumsum(np.log(new / old)[kinds, picks], -1)


def test_the_spread_grows_as_the_root_of_the_position_and_the_mean_falls_with_it():
    l, at = cumulative_log_ratios(), np.array([16, 64, 256, 1024, 4096]) - 1
    spread, mean = l[:, at].std(0), l[:, at].mean(0)
    flat = spread / np.sqrt(at + 1)
    assert flat.max() / flat.min() < 1.15  # 2000 rows: a standard deviation is known to 1.6 %
    assert spread[-1] / spread[0] > 13  # a fixed clip has no such width: √256 = 16
    np.testing.assert_allclose(mean[2:], -5e-3 * (at[2:] + 1), rtol=0.06)
    assert np.mean(l[:, -1] < -2 * flat.mean() * np.sqrt(4096)) > 0.8
    assert np.mean(l[:, 15] < -2 * flat.mean() * 4) < 0.1
