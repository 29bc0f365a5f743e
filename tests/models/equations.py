"""The transformer's equations in NumPy float64, with loops over layers, heads, tokens and experts."""

import math

import jax
import numpy as np


def hidden_states(config, params, tokens):
    """Hidden states [T, D] of one sequence of tokens [T]."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = p["embedding"][tokens] * config.embedding_scale
    for i in range(config.layers):
        block = p["blocks"][i]
        y = _attention(
            config, block["attention"], _norm(config, x, block["attention_norm"]), local=_is_local(config, i)
        )
        x = x + (_norm(config, y, block["attention_post_norm"]) if config.post_norm else y)
        y = _norm(config, x, block["mlp_norm"])
        y = (
            _experts(config, block["mlp"], y)
            if config.experts and i not in config.dense_layers
            else _mlp(config, y, **block["mlp"])
        )
        x = x + (_norm(config, y, block["mlp_post_norm"]) if config.post_norm else y)
    return _norm(config, x, p["norm"])


def _is_local(config, layer):
    return bool(config.local_layers) and config.local_layers[layer]


def _norm(config, x, norm):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * (config.norm_shift + norm["scale"])


def _angles(config, local):
    """Angle per token [C/2] of each pair of features."""
    found = []
    for i in range(config.head_dim // 2):
        angle = (config.local_rope_base if local else config.rope_base) ** (-2 * i / config.head_dim)
        scaling = None if local else config.rope_scaling
        if type(scaling).__name__ == "LinearScaling":
            angle /= scaling.factor
        elif type(scaling).__name__ == "Llama3Scaling":
            wavelength = 2 * math.pi / angle
            length, low, high = (
                scaling.original_max_position_embeddings,
                scaling.low_freq_factor,
                scaling.high_freq_factor,
            )
            if wavelength > length / low:
                angle /= scaling.factor
            elif wavelength >= length / high:
                share = (length / wavelength - low) / (high - low)
                angle = (1 - share) * angle / scaling.factor + share * angle
        found.append(angle)
    return np.array(found)


def _attention(config, p, y, local):
    T, C = len(y), config.head_dim
    turn = np.exp(1j * np.arange(T)[:, None] * _angles(config, local))

    def rotate(x):
        z = (x[:, : C // 2] + 1j * x[:, C // 2 :]) * turn
        return np.concatenate([z.real, z.imag], -1)

    def head(name, h):
        x = y @ p[name][:, h] + (p[f"{name}_bias"][h] if config.qkv_bias else 0)
        return _norm(config, x, p[f"{name}_norm"]) if config.qk_norm and name != "value" else x

    mixed = np.zeros_like(y)
    for h in range(config.heads):
        kv = h // (config.heads // config.kv_heads)
        q, k, v = rotate(head("query", h)), rotate(head("key", kv)), head("value", kv)
        for t in range(T):
            first = max(0, t - config.window + 1) if local else 0
            logits = k[first : t + 1] @ q[t] * (config.query_scale or 1 / np.sqrt(C))
            if config.attention_softcap:
                logits = config.attention_softcap * np.tanh(logits / config.attention_softcap)
            weights = np.exp(logits - logits.max())
            mixed[t] += (weights / weights.sum()) @ v[first : t + 1] @ p["out"][h]
    return mixed


def _activation(config, x):
    if config.activation.__name__ == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x))


def _mlp(config, y, gate, up, down):
    return (_activation(config, y @ gate) * (y @ up)) @ down


def _experts(config, p, y):
    out = np.zeros_like(y)
    for t in range(len(y)):
        odds = np.exp(y[t] @ p["router"])
        pi = odds / odds.sum()
        chosen = np.argsort(-pi)[: config.experts_per_token]
        total = pi[chosen].sum() if config.renormalize_experts else 1.0
        for e in chosen:
            out[t] += pi[e] / total * _mlp(config, y[t], *(p[name][e] for name in ("gate", "up", "down")))
    return out
