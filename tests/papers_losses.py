"""Losses other than the policy gradient as plain NumPy loops in float64: penalties, distillation, rewards, metrics.

A penalty is `f(…) -> (Σ w x, its gradient)` over `[B, T]`, with gradients derived by hand.
"""

import numpy as np

from tests import papers

# KL estimators: value and derivative at one token.


def k1(l):
    return l, 1.0


def k2(l):
    return l**2 / 2, l


def k3(l):
    return np.exp(-l) - 1 + l, 1 - np.exp(-l)


def straight_through(value, gradient=k2):
    return lambda l: (value(l)[0], gradient(l)[1])


# Penalties.


def weighted(w, mask, one):
    """Σ w x and w ∂x over the trained tokens; `one` returns (x, ∂x) at an index."""
    total, gradient = 0.0, np.zeros(mask.shape)
    for place in zip(*np.nonzero(mask), strict=True):
        x, slope = one(place)
        total += w[place] * x
        gradient[place] = w[place] * slope
    return total, gradient


def kl(logp, ref_logp, w, mask, estimator):
    return weighted(w, mask, lambda t: estimator(logp[t] - ref_logp[t]))


def quadratic(logp, old_logp, w, mask):
    return weighted(w, mask, lambda t: ((logp[t] - old_logp[t]) ** 2 / 2, logp[t] - old_logp[t]))


def kl_corrected(logp, ref_logp, old_logp, w, mask):
    def one(t):
        r, (value, slope) = np.exp(logp[t] - old_logp[t]), k3(logp[t] - ref_logp[t])
        return r * value, r * value + r * slope

    return weighted(w, mask, one)


def a2po(logp, ref_logp, A, w, mask, beta):
    """Σ_t w_t (β s − A_t)² over rows, each one sequence."""
    total, gradient = 0.0, np.zeros(mask.shape)
    for b, m in enumerate(mask):
        s = sum(logp[b, t] - ref_logp[b, t] for t in np.flatnonzero(m))
        for t in np.flatnonzero(m):
            total += w[b, t] * (beta * s - A[b, t]) ** 2
            gradient[b, m] += w[b, t] * 2 * beta * (beta * s - A[b, t])
    return total, gradient


def optimal_advantage(rewards, mask, reference_rewards, beta):
    out = np.zeros(mask.shape)
    for p, own in enumerate(reference_rewards):
        value = beta * np.log(sum(np.exp(r / beta) for r in own) / len(own))
        for g, m in enumerate(mask[p]):
            out[p, g, m] = rewards[p, g] - value
    return out


def entropy_bonus(entropy, w, mask):
    return weighted(w, mask, lambda t: (-entropy[t], -1.0))


def exact_kl(kl, w, mask):
    return weighted(w, mask, lambda t: (kl[t], 1.0))


def value_loss(v, returns, old, w, mask, limit):
    def one(t):
        near = min(max(v[t], old[t] - limit), old[t] + limit)
        plain, clipped = (v[t] - returns[t]) ** 2 / 2, (near - returns[t]) ** 2 / 2
        if plain >= clipped or near == v[t]:
            return plain, v[t] - returns[t]
        return clipped, 0.0

    return weighted(w, mask, one)


def covariance(logp, A, mask):
    places = list(zip(*np.nonzero(mask), strict=True))
    mean_A, mean = (sum(x[t] for t in places) / len(places) for x in (A, logp))
    out = np.zeros(mask.shape)
    for t in places:
        out[t] = (A[t] - mean_A) * (logp[t] - mean)
    return out


def kl_cov(logp, old_logp, A, w, mask, share):
    c = covariance(logp, A, mask)
    places = sorted(zip(*np.nonzero(mask), strict=True), key=lambda t: -c[t])[: max(1, int(share * mask.sum()))]
    l = {t: logp[t] - old_logp[t] for t in places}
    return weighted(w, mask, lambda t: (abs(l[t]), np.sign(l[t])) if t in l else (0.0, 0.0))


def top_entropy(entropy, mask, share):
    places = sorted(zip(*np.nonzero(mask), strict=True), key=lambda t: -entropy[t])
    out = np.zeros(mask.shape, bool)
    for t in places[: max(1, int(share * len(places)))]:
        out[t] = True
    return out


def confident_negatives(entropy, A, threshold):
    return np.array([[not (a < 0 and h > threshold) for h, a in zip(*row, strict=True)]
                     for row in zip(entropy, A, strict=True)])  # fmt: skip


# Corrections of weights `[B, T]`.


def batch_normalized(weights, mask):
    mean = sum(weights[mask]) / mask.sum()
    return np.where(mask, weights / mean, 0)


def correction_report(mismatch, mask, kept, weights=None):
    rho = np.exp(mismatch)
    w = (rho if weights is None else weights)[mask & kept[:, None]]
    present = [b for b in range(len(mask)) if mask[b].any()]
    return {
        "rejected": sum(not kept[b] for b in present) / len(present),
        "effective_samples": 1 / np.mean([(x / np.mean(w)) ** 2 for x in w]),
        "chi_squared": np.mean([x**2 for x in rho[mask]]) - 1,
        "kl": np.mean([np.exp(x) - x - 1 for x in mismatch[mask]]),
    }


# Distillation: logits `[N, K]`, one position per row.


def support_loss(student, teacher, weights, valid):
    """Σ w KL(π̂ ‖ q̂), and its gradient w π̂_j (log(π̂_j/q̂_j) − KL)."""
    total, gradient = 0.0, np.zeros(student.shape)
    for n, ok in enumerate(valid):
        if not ok.any():
            continue
        pi, q = (np.exp(x[n, ok]) / np.exp(x[n, ok]).sum() for x in (student, teacher))
        divergence = sum(a * np.log(a / b) for a, b in zip(pi, q, strict=True))
        total += weights[n] * divergence
        gradient[n, ok] = [weights[n] * a * (np.log(a / b) - divergence) for a, b in zip(pi, q, strict=True)]
    return total, gradient


def sampled_token(old_logp, teacher_logp, mask):
    return weighted(np.ones(mask.shape), mask, lambda t: (0.0, teacher_logp[t] - old_logp[t]))[1]


def importance_weighted(old_logp, teacher_logp, mask, gamma):
    out = np.zeros(mask.shape)
    for b, m in enumerate(mask):
        a = [teacher_logp[b, t] - old_logp[b, t] for t in np.flatnonzero(m)]
        out[b, m] = [(1 + gamma * (1 - sum(map(abs, a[:t])) / sum(map(abs, a)))) * a[t] for t in range(len(a))]
    return out


# Rewards, `[P, G]`.


def informative(rewards, mask):
    return np.array(
        [len({r for r, m in zip(*group, strict=True) if m.any()}) > 1 for group in zip(rewards, mask, strict=True)]
    )


def overlong_penalty(length, max_length, buffer):
    return max(-1.0, min(0.0, -(length - (max_length - buffer)) / buffer))


def length_shaping(rewards, mask, share, alpha):
    groups, out = range(len(rewards)), np.zeros(rewards.shape)
    present = [[g for g in range(rewards.shape[1]) if mask[p, g].any()] for p in groups]
    right = [[g for g in present[p] if rewards[p, g] > 0] for p in groups]
    best = sorted(groups, key=lambda p: -len(right[p]) / max(len(present[p]), 1))[: round(share * len(rewards))]
    for p in groups:
        n = [mask[p, g].sum() for g in right[p]]
        std = np.std(n, ddof=1) if len(n) > 1 else 0.0
        for g, length in zip(right[p], n, strict=True):
            z = (length - np.mean(n)) / std if std > 0 else 0.0
            out[p, g] = 1 - alpha / (1 + np.exp(-z)) if p in best else 1.0
    return out


def improvement(rewards, mask, history):
    mean = np.mean([r for r, m in zip(rewards.ravel(), mask.any(-1).ravel(), strict=True) if m])
    return (mean - np.mean(history)) / np.std(history, ddof=1)


# Metrics.


def policy_summary(logp, old_logp, A, w, mask, gradient):
    """`gradient` is ∂L/∂logp."""
    places = list(zip(*np.nonzero(mask), strict=True))
    l, weight = [logp[t] - old_logp[t] for t in places], sum(w[t] for t in places)
    r = np.exp(l)
    cut = [t for t in places if w[t] * A[t] != 0 and gradient[t] == 0]
    return {
        "clip_share": sum(w[t] for t in cut) / weight,
        "clip_share_positive": sum(w[t] for t in cut if A[t] > 0) / weight,
        "clip_share_negative": sum(w[t] for t in cut if A[t] < 0) / weight,
        "kl": np.mean([x - 1 - np.log(x) for x in r]),
        "kl_k1": -np.mean(l),
        "ratio_mean": np.mean(r),
        "effective_samples": sum(r) ** 2 / len(r) / sum(r**2),
    }


def position_summary(logp, old_logp, A, w, mask, gradient, edges):
    bins = [[] for _ in range(len(edges) + 1)]
    for b, row in enumerate(mask):
        spent = 0.0
        for ordinal, t in enumerate(np.flatnonzero(row), start=1):
            spent += logp[b, t] - old_logp[b, t]
            cut = w[b, t] * A[b, t] != 0 and gradient[b, t] == 0
            bins[sum(ordinal > e for e in edges)].append((spent, w[b, t], cut * (A[b, t] > 0), cut * (A[b, t] < 0)))
    sums, weight, up, down = zip(*(np.array(x, float).reshape(-1, 4).T for x in bins), strict=True)
    return {
        "clip_share_positive": [np.dot(x, c) / sum(x) if len(x) else np.nan for x, c in zip(weight, up, strict=True)],
        "clip_share_negative": [np.dot(x, c) / sum(x) if len(x) else np.nan for x, c in zip(weight, down, strict=True)],
        "drift": [np.mean(x) if len(x) else np.nan for x in sums],
        "spread": [np.std(x) if len(x) else np.nan for x in sums],
    }


def reward_summary(rewards, mask):
    present = [(p, g) for p, g in np.ndindex(rewards.shape) if mask[p, g].any()]
    R = [rewards[i] for i in present]
    groups = informative(rewards, mask)[mask.any((1, 2))]
    return {"reward": np.mean(R), "reward_std": np.std(R), "length": np.mean([mask[i].sum() for i in present]),
            "informative": np.mean(groups)}  # fmt: skip


def sign_length_gap(A, mask):
    lengths = {1: [], 0: [], -1: []}
    for i in np.ndindex(mask.shape[:2]):
        lengths[int(np.sign(A[i][mask[i]].sum()))].append(mask[i].sum())
    return np.mean(lengths[1]) - np.mean(lengths[-1])


def variance_proxies(A, mask, proxy, norm):
    present = [i for i in np.ndindex(mask.shape[:2]) if mask[i].any()]
    total = np.mean([np.mean(A[i][mask[i]]) ** 2 * papers.energies([mask[i]], [proxy[i]])[0][-1] for i in present])
    return {"signal": norm**2, "total": total, "noise": max(0.0, (total - norm**2) / (len(present) - 1))}
