"""XLA flags for quick compilation: tests run a program once or twice, so most of their time is compilation."""

from importlib.metadata import version

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
if version("jaxlib") < "0.11":  # later versions have only fusion emitters
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
