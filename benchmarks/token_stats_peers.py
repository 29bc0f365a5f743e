"""Heads of other libraries, if installed, called through their documented interfaces; a name lists the outputs."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec


def peers() -> dict[str, Callable]:
    """Functions `(N, D, V) -> (forward, step)` by name, for the installed libraries."""
    forms = {
        "torch.compile, dense, all three": ("torch", _compiled),
        "cut_cross_entropy, logp": ("cut_cross_entropy", _cut_cross_entropy),
        "liger_kernel, mean logp": ("liger_kernel", _liger),
    }
    return {name: make for name, (module, make) in forms.items() if find_spec(module) is not None}


def cut_cross_entropy_on_cpu(dtype: str, n: int, d: int, v: int):
    """(forward, step) of Cut Cross-Entropy's `torch_compile` form, which computes the log-probability only."""
    loss = import_module("cut_cross_entropy").linear_cross_entropy
    return _timed(lambda h, w, y: loss(h, w, y, reduction="none", impl="torch_compile").sum(), n, d, v, "cpu", dtype)


def _timed(loss: Callable, n: int, d: int, v: int, device: str = "cuda", dtype: str = "bfloat16"):
    """(forward, step), functions without arguments that run loss(hidden, unembedding, targets) and its gradient."""
    torch = import_module("torch")

    options = {"device": device, "dtype": getattr(torch, dtype)}
    hidden, unembedding = torch.randn(n, d, **options), torch.randn(v, d, **options) / d**0.5
    targets = torch.randint(v, (n,), device=device)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.no_grad():
            loss(hidden, unembedding, targets)
        wait()

    def step():
        leaves = [x.detach().requires_grad_() for x in (hidden, unembedding)]
        torch.autograd.grad(loss(*leaves, targets), leaves)
        wait()

    return forward, step


def _compiled(n, d, v):
    torch = import_module("torch")

    @torch.compile
    def loss(hidden, unembedding, targets):
        log_pi = torch.log_softmax((hidden @ unembedding.T).float(), -1)
        pi, logp = log_pi.exp(), log_pi.gather(-1, targets[:, None])[:, 0]
        return (logp - (pi * log_pi).sum(-1) + 1 - 2 * logp.exp() + (pi * pi).sum(-1)).sum()

    return _timed(loss, n, d, v)


def _cut_cross_entropy(n, d, v):
    linear_cross_entropy = import_module("cut_cross_entropy").linear_cross_entropy
    return _timed(lambda h, w, y: linear_cross_entropy(h, w, y, reduction="none").sum(), n, d, v)


def _liger(n, d, v):
    loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return _timed(lambda h, w, y: loss(w, h, y), n, d, v)
