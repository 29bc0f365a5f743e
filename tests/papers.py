"""The papers' formulas as plain NumPy loops in float64, and random ragged batches to test them on.

A ratio maps (l, A, l0) of one sequence's trained tokens to the list f(ℓ); `l` is ℓ, and `l0` is ℓ where the paper stops
the gradient. Loops also accept complex numbers, for gradients by complex steps.
"""

from functools import partial

import numpy as np

# Ratios of one sequence.


def token(l, A, l0):
    return l


def sequence_mean(l, A, l0):
    return [sum(l) / len(l) for _ in l]


def sequence_sum(l, A, l0):
    return [sum(l) for _ in l]


def cumulative(l, A, l0):
    return [sum(l[: t + 1]) for t in range(len(l))]


def prefix_mean(l, A, l0):
    return [sum(l[: t + 1]) / (t + 1) for t in range(len(l))]


def prefix_min(l, A, l0):
    return [(min(x.real for x in l0[:t]) if t else 0.0) + l[t] for t in range(len(l))]


def power_mean(p):
    def f(l, A, l0):
        if p == 0:
            return sequence_mean(l, A, l0)
        return [np.log(sum(np.exp(p * x) for x in l) / len(l)) / p for _ in l]

    return f


def smaller(x, y):
    return x if np.real(x) <= np.real(y) else y


def greater(x, y):
    return x if np.real(x) >= np.real(y) else y


def clip(low, high, dual=np.inf):
    """The ratio from the maximum of PPO's two losses (min(rA, clip(r)A)), then the dual clip."""

    def one(x, a):
        r = np.exp(x)
        clipped = smaller(greater(r, 1 - low), 1 + high)
        chosen = smaller(r * a, clipped * a) / a if a else r
        return np.log(smaller(chosen, dual) if a < 0 else chosen)

    return lambda l, A, l0: [one(x, a) for x, a in zip(l, A, strict=True)]


def log_clip(low, high):
    def one(x, a):
        s = np.sign(a)
        return s * smaller(s * x, s * smaller(greater(x, -low), high))

    return lambda l, A, l0: [one(x, a) for x, a in zip(l, A, strict=True)]


def position_clip(low, high, dual=np.inf, power=0.5):
    def one(x, a, width):
        if a >= 0:
            return smaller(x, high * width)
        return smaller(greater(x, -low * width), dual * width)

    return lambda l, A, l0: [one(x, a, (t + 1) ** power) for t, (x, a) in enumerate(zip(l, A, strict=True))]


def two_sided_clip(low=None, high=0.28):
    floor = -np.inf if low is None else np.log(1 - low)
    return lambda l, A, l0: [greater(smaller(x, np.log(1 + high)), floor) for x in l]


def soft_gate(positive=1.0, negative=1.05):
    def one(x, a):
        tau = positive if a > 0 else negative
        return np.log(4 / tau / (1 + np.exp(-tau * (np.exp(x) - 1))))

    return lambda l, A, l0: [one(x, a) for x, a in zip(l, A, strict=True)]


def total_variation_mask(low, high, q, cap=3.0):
    """DPPO-TV if every token has probability q under the old policy."""

    def one(x, x0, a):
        d = q * np.exp(x0) - q
        if (a > 0 and d > high) or (a < 0 and d < -low):
            return -np.inf
        return min(x0, np.log(cap)) - x0 + x

    return lambda l, A, l0: [one(x, np.real(x0), a) for x, x0, a in zip(l, l0, A, strict=True)]


def kl_mask(low, high, q, cap=3.0):
    """DPPO-KL if every token has probability q under the old policy."""

    def one(x, x0, a):
        p = q * np.exp(x0)
        d = q * np.log(q / p) + (1 - q) * np.log((1 - q + 1e-8) / (1 - p + 1e-8))
        if (a > 0 and not (d <= high or p <= q)) or (a < 0 and not (d <= low or p >= q)):
            return -np.inf
        return min(x0, np.log(cap)) - x0 + x

    return lambda l, A, l0: [one(x, np.real(x0), a) for x, x0, a in zip(l, l0, A, strict=True)]


def cumulative_divergence_mask(limit, slack, divergence, least=0.8):
    """CPPO if every token has this divergence."""

    def f(l, A, l0):
        n = len(l)
        w = [1 - (1 - least) * t / max(n - 1, 1) for t in range(n)]
        out = []
        for t in range(n):
            spent, before = sum(w[: t + 1]) * divergence, sum(w[:t])
            within = w[t] * divergence <= limit and spent <= limit + slack * before
            out.append(l[t] if A[t] * (np.exp(np.real(l0[t])) - 1) <= 0 or within else -np.inf)
        return out

    return f


def gamma_gate(positive=(2.0, 3.0), negative=(3.0, 2.0)):
    def one(x, a):
        k, lam = negative if a < 0 else positive
        x = min(max(x, np.log(1e-8)), 20.0)
        return lam + k * x - lam * np.exp(x)

    return lambda l, A, l0: [one(x, a) for x, a in zip(l, A, strict=True)]


def taper(l, A, l0):
    return [min(x, 0.0) if a < 0 else 0.0 for x, a in zip(l, A, strict=True)]


def clamp(limit):
    return lambda l, A, l0: [smaller(greater(x, -limit), limit) for x in l]


def chain(*ratios):
    def f(l, A, l0):
        for ratio in ratios:
            l, l0 = ratio(l, A, l0), ratio(l0, A, l0)
        return l

    return f


def local_gradient(ratio):
    return lambda l, A, l0: [v - x0 + x for v, x0, x in zip(ratio(l0, A, l0), l0, l, strict=True)]


def sequences(ids):
    """The (row, columns) of each sequence in ids [B, T]; 0 is not a sequence."""
    return [(b, np.flatnonzero(row == i)) for b, row in enumerate(ids) for i in np.unique(row[row != 0])]


def ratio_values(ratio, l, A, ids):
    out = np.zeros_like(l)
    for b, columns in sequences(ids):
        x = list(l[b, columns])
        out[b, columns] = ratio(x, list(A[b, columns]), x)
    return out


def policy_loss(ratio, l, A, w, ids, l0=None):
    l0, loss = (l if l0 is None else l0), 0.0
    for b, columns in sequences(ids):
        f = ratio(list(l[b, columns]), list(A[b, columns]), list(l0[b, columns]))
        loss -= sum(w[b, t] * A[b, t] * np.exp(x) for t, x in zip(columns, f, strict=True))
    return loss


def policy_gradient(ratio, l, A, w, ids):
    gradient = np.zeros_like(l)
    for b, columns in sequences(ids):
        for t in columns:
            moved = l.astype(complex)
            moved[b, t] += 1e-30j
            gradient[b, t] = policy_loss(ratio, moved, A, w, ids, l).imag / 1e-30
    return gradient


# Advantages of one group: `rewards [G]` or `[G, T]`, `mask [G, T]`, and `proxy` if required.


def returns(rewards, mask):
    """R, or G_t, at each member's positions."""
    out = []
    for reward, m in zip(rewards, mask, strict=True):
        own = [reward] * int(m.sum()) if np.ndim(reward) == 0 else list(np.cumsum(reward[m][::-1])[::-1])
        out.append(own)
    return out


def outcomes(baseline):
    """Applies A_i(R, n) to the present members and copies the result to their tokens."""

    def f(rewards, mask):
        out = np.zeros(mask.shape)
        present = [i for i in range(len(mask)) if mask[i].any()]
        if not present:
            return out
        R = [rewards[i] if rewards.ndim == 1 else rewards[i][mask[i]].sum() for i in present]
        for i, a in zip(present, baseline(R, [mask[i].sum() for i in present]), strict=True):
            out[i, mask[i]] = a
        return out

    return f


@outcomes
def group_relative(R, n):
    return [0.0] if len(R) == 1 else [(x - np.mean(R)) / (np.std(R, ddof=1) + 1e-6) for x in R]


@outcomes
def standard_score(R, n):
    return [(x - np.mean(R)) / np.std(R, ddof=1) if len(set(R)) > 1 else 0.0 for x in R]


@outcomes
def mean_baseline(R, n):
    return [x - np.mean(R) for x in R]


@outcomes
def leave_one_out(R, n):
    return [0.0] if len(R) == 1 else [x - (sum(R) - x) / (len(R) - 1) for x in R]


@outcomes
def length_weighted(R, n):
    return [x - np.dot(R, n) / sum(n) for x in R]


@outcomes
def max_rl(R, n):
    if len(R) == 1:
        return list(R)
    mean = sum(R) / len(R)
    return [(x - mean) / mean if mean else 0.0 for x in R]


@outcomes
def pass_at_k(R, n):
    first, *second = sorted(R, reverse=True)[:2]
    return [first - second[0] if second and i == int(np.argmax(R)) else 0.0 for i in range(len(R))]


def standardized(advantage):
    def f(rewards, mask):
        present = [i for i in range(len(mask)) if mask[i].any()]
        R = [rewards[i] if rewards.ndim == 1 else rewards[i][mask[i]].sum() for i in present]
        return advantage(rewards, mask) / ((np.std(R, ddof=1) if len(R) > 1 else 0.0) + 1e-6)

    return f


def policy_improvement(rewards, mask, improvement, slope=0.1):
    phi = improvement if improvement >= 0 else slope * improvement

    @outcomes
    def baseline(R, n):
        A = [x - np.mean(R) for x in R]
        return [phi * len(R) * a / sum(map(abs, A)) if any(A) else 0.0 for a in A]

    return baseline(rewards, mask)


def prefix_tree(rewards, mask, tokens):
    words = [tuple(t[m]) for t, m in zip(tokens, mask, strict=True)]
    R = [reward if np.ndim(reward) == 0 else reward[m].sum() for reward, m in zip(rewards, mask, strict=True)]
    present, out = [i for i in range(len(mask)) if words[i]], np.zeros(mask.shape)

    def value(prefix):
        return np.mean([R[j] for j in present if words[j][: len(prefix)] == prefix])

    for i in present:
        std = np.std([R[j] for j in present], ddof=1) if len(present) > 1 else 0.0
        for t, column in enumerate(np.flatnonzero(mask[i])):
            change = value(words[i][: t + 1]) - value(words[i][:t])
            out[i, column] = (R[i] - value(()) + change) / (std + 1e-6)
    return out


def token_rewards(rewards, mask):
    """r_t at each member's positions; an outcome is paid at the last one."""
    out = []
    for reward, m in zip(rewards, mask, strict=True):
        n = int(m.sum())
        out.append(list(reward[m]) if np.ndim(reward) else [reward * (t == n - 1) for t in range(n)])
    return out


def discounted_returns(rewards, mask, gamma=1.0):
    out = np.zeros(mask.shape)
    for i, r in enumerate(token_rewards(rewards, mask)):
        out[i, mask[i]] = [sum(gamma ** (j - t) * r[j] for j in range(t, len(r))) for t in range(len(r))]
    return out


def remax(rewards, mask, greedy_rewards):
    out = np.zeros(mask.shape)
    for i, G in enumerate(returns(rewards, mask)):
        out[i, mask[i]] = [x - greedy_rewards for x in G]
    return out


def generalized_advantage_estimation(rewards, mask, values, gamma=1.0, lam=0.95):
    out = np.zeros(mask.shape)
    for i, r in enumerate(token_rewards(rewards, mask)):
        V = [*values[i][mask[i]], 0.0]
        delta = [r[t] + gamma * V[t + 1] - V[t] for t in range(len(r))]
        out[i, mask[i]] = [sum((gamma * lam) ** (j - t) * delta[j] for j in range(t, len(r))) for t in range(len(r))]
    return out


# Advantages of the whole batch: `rewards [P, G]` or `[P, G, T]`, `mask [P, G, T]`.


def over_groups(f):
    return lambda rewards, mask, **named: np.stack(
        [f(*group, **{k: v[p] for k, v in named.items()}) for p, group in enumerate(zip(rewards, mask, strict=True))]
    )


def whiten(x, mask):
    values = x[mask]
    out = np.zeros(x.shape)
    if len(values) > 1:
        out[mask] = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-8)
    return out


def reinforce_plus_plus(rewards, mask, gamma=1.0):
    return whiten(over_groups(partial(discounted_returns, gamma=gamma))(rewards, mask), mask)


def reinforce_plus_plus_baseline(rewards, mask):
    return whiten(over_groups(mean_baseline)(rewards, mask), mask)


def multi_reward(rewards, mask, components):
    standard = [over_groups(standard_score)(components[..., k], mask) for k in range(components.shape[-1])]
    return whiten(sum(standard), mask)


def without_negatives(advantage):
    def kept(rewards, mask, dropping, **named):
        out = advantage(rewards, mask, **named).copy()
        for p, g in np.ndindex(*mask.shape[:2]):
            if dropping and out[p, g][mask[p, g]].sum() < 0:
                out[p, g] = 0
        return out

    return kept


def whitened_estimation(rewards, mask, values):
    return whiten(over_groups(generalized_advantage_estimation)(rewards, mask, values=values), mask)


def task_relative(rewards, mask, task):
    out = np.zeros(mask.shape)
    P, G = mask.shape[:2]
    R = [[rewards[p, g] if rewards.ndim == 2 else rewards[p, g][mask[p, g]].sum() for g in range(G)] for p in range(P)]
    for p in range(P):
        own = [R[p][g] for g in range(G) if mask[p, g].any()]
        alike = [R[q][g] for q in range(P) for g in range(G) if task[q] == task[p] and mask[q, g].any()]
        std = np.std(alike, ddof=1) if len(alike) > 1 else 0.0
        for g in range(G):
            out[p, g, mask[p, g]] = (R[p][g] - np.mean(own)) / (std + 1e-6) if own else 0.0
    return out


def weighted_mean(values, weights):
    return np.dot(values, weights) / sum(weights) if sum(weights) > 0 else np.mean(values)


def token_baseline(rewards, mask, W, leave_out):
    """W holds each member's energies at its positions."""
    G = returns(rewards, mask)
    out = np.zeros(mask.shape)
    for i, m in enumerate(mask):
        for t, column in enumerate(np.flatnonzero(m)):
            others = [j for j in range(len(mask)) if j != i]
            alive = [j for j in others if len(G[j]) > t]
            present = [j for j in others if len(G[j])]
            if alive:
                members = alive if leave_out else [i, *alive]
                baseline = weighted_mean([G[j][t] for j in members], [W[j][t] for j in members])
            elif present:
                baseline = weighted_mean([G[j][-1] for j in present], [W[j][-1] for j in present])
            else:
                baseline = G[i][t]
            out[i, column] = G[i][t] - baseline
    return out


def energies(mask, proxy, importance=None):
    w = np.ones_like(proxy) if importance is None else importance
    return [np.cumsum(np.maximum(e[m], 0) * u[m] ** 2) for e, u, m in zip(proxy, w, mask, strict=True)]


def optimal_token_baseline(rewards, mask, proxy, importance=None):
    return token_baseline(rewards, mask, energies(mask, proxy, importance), leave_out=False)


def leave_one_out_token_baseline(rewards, mask, proxy, importance=None):
    return token_baseline(rewards, mask, energies(mask, proxy, importance), leave_out=True)


def exact_energy_baseline(rewards, mask, energy):
    return token_baseline(rewards, mask, [e[m] for e, m in zip(energy, mask, strict=True)], leave_out=False)


def reference_token_baseline(rewards, mask, proxy):
    """The published code's baseline of 0 past the second-longest completion (a fault that we avoid)."""
    out = optimal_token_baseline(rewards, mask, proxy)
    lengths = sorted(mask.sum(axis=1))
    for i, m in enumerate(mask):
        for t, column in enumerate(np.flatnonzero(m)):
            if t >= lengths[-2]:
                out[i, column] = returns(rewards, mask)[i][t]
    return out


# Aggregations over one step: `mask [P, G, T]`, `sign [P, G]`.


def token_mean(mask, sign):
    return mask / max(mask.sum(), 1)


def sequence_mean_weights(mask, sign):
    n = mask.sum(-1, keepdims=True)
    return mask / np.maximum(n, 1) / max((n > 0).sum(), 1)


def group_mean(mask, sign):
    n = mask.sum((1, 2), keepdims=True)
    return mask / np.maximum(n, 1) / max((n > 0).sum(), 1)


def constant(max_length):
    return lambda mask, sign: mask / max_length / max(mask.any(-1).sum(), 1)


def balanced(mask, sign):
    out, groups = np.zeros(mask.shape), max(mask.any((1, 2)).sum(), 1)
    for p in range(len(mask)):
        present = [g for g in range(mask.shape[1]) if mask[p, g].any()]
        for value in (-1, 1):
            members = [g for g in present if sign[p, g] == value]
            tokens = sum(mask[p, g].sum() for g in members)
            for g in members:
                out[p, g] = mask[p, g] * (len(members) / len(present)) / tokens / groups
    return out


# Corrections of one sequence: λ over its trained tokens. Weights, then rejections.


def token_truncated(x, cap=2.0):
    return [min(np.exp(v), cap) for v in x]


def sequence_truncated(x, cap=2.0):
    return [min(np.prod(np.exp(x)), cap) for _ in x]


def icepop(x, low=0.5, high=5.0):
    return [np.exp(v) if low <= np.exp(v) <= high else 0.0 for v in x]


def sequence_masked(x, cap=2.0):
    return [np.prod(np.exp(x)) * (np.prod(np.exp(x)) <= cap) for _ in x]


def geometric(x, low=0.999, high=1.001):
    return low <= np.exp(np.mean(x)) <= high


def k3(x, limit=0.01):
    return np.mean([np.exp(v) - v - 1 for v in x]) <= limit


def veto(x, least=1e-4):
    return not any(v < np.log(least) for v in x)


def random_mask(rng, shape, hole=0.25):
    """Ragged, with holes; in [P, G, T], group 0 has one member and one completion is empty."""
    mask = rng.random(shape) > hole
    mask &= np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, shape[:-1])[..., None]
    if len(shape) == 3:
        mask[0, 1:] = False
        mask[0, 0, 1] = True
        mask[1, 2] = False
        mask[1, [0, 1], 2] = True
    return mask


def random_rollouts(seed, shape=(4, 5, 8), *, dense=False):
    """rewards, mask, proxy: ragged groups, one with equal rewards, one with zeros and negatives in the proxy."""
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, shape)
    rewards = rng.normal(size=shape if dense else shape[:2])
    rewards[2] = 0.1 if not dense else rewards[2]
    proxy = rng.uniform(0, 2, shape)
    proxy[3, :, :3] = [0.0, -0.1, 0.0]
    return rewards, mask, proxy


def random_fields(seed, rewards, mask):
    """Other fields that advantages require, for the rollouts of this seed."""
    rng = np.random.default_rng(seed + 1000)
    groups, members = mask.shape[:2]
    proxy = rng.uniform(-0.2, 2, mask.shape)
    proxy[3:, ..., :3] = 0.0
    return {
        "proxy": proxy,
        "energy": rng.uniform(0, 3, mask.shape),
        "importance": rng.uniform(0.2, 2, mask.shape),
        "values": rng.normal(size=mask.shape),
        "tokens": rng.integers(0, 2, mask.shape).astype(np.int32),
        "greedy_rewards": rng.normal(size=groups),
        "components": rng.normal(size=(groups, members, 2)),
        "task": (np.arange(groups) % 2).astype(np.int32),
        "improvement": -0.7,
        "dropping": np.array(True),
    }


def random_batch(seed, shape=(6, 9), scale=0.4):
    """Log-ratios, advantages (one row of zeros), weights and a mask, `[B, T]`."""
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, shape)
    advantages = np.repeat(rng.normal(size=(*shape[:-1], 1)), shape[-1], axis=-1)
    advantages[-1] = 0.0
    return rng.normal(size=shape) * scale * mask, advantages, rng.uniform(0.5, 1.5, shape), mask


def agree(actual, expected, tolerance=1e-10):
    """True if the difference is at most the tolerance times the answer's size, with NaN at the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape == expected.shape:
        neither = np.isnan(actual) & np.isnan(expected)
        actual, expected = np.where(neither, 0.0, actual), np.where(neither, 0.0, expected)
    return actual.shape == expected.shape and bool(
        np.max(np.abs(actual - expected), initial=0.0) <= tolerance * max(np.max(np.abs(expected), initial=0.0), 1e-3)
    )
