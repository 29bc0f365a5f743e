"""The public modules, functions and classes of rljax's core and of pallas_kernels."""

import importlib
import pkgutil

import pallas_kernels
import rljax

TRAINER = ("configs", "models", "rollout", "tasks", "text", "training")  # these packages need the extra `train`
CORE = [
    importlib.import_module(f"rljax.{module.name}")
    for module in pkgutil.iter_modules(rljax.__path__)
    if module.name not in TRAINER and not module.name.startswith("_")
]
PUBLIC = {module.__name__: module for module in CORE} | {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (rljax, pallas_kernels, *CORE)
    for name in getattr(module, "__all__", ())
}
