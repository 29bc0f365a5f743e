"""XLA flags for programs that compile quickly: a test runs a program once or twice, so compiling it takes longest."""

from importlib.metadata import version

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"
if version("jaxlib") < "0.11":  # newer versions have no other emitters
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
