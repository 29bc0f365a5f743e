"""Stand-ins, where no package index is at hand, for rules_python and for its hub of packages (Bazel before 5)."""

_DEFS = """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
"""

_RUNTIME = """
load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime(name = "python3", interpreter_path = "{python}", python_version = "PY3")

py_runtime_pair(name = "pair", py3_runtime = ":python3")

toolchain(
    name = "toolchain",
    toolchain = ":pair",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""

def _run(ctx, *arguments):
    result = ctx.execute([str(ctx.path(ctx.attr.venv).dirname) + "/bin/python"] + list(arguments))
    if result.return_code:
        fail(result.stderr)
    return result.stdout.strip()

def _rules_python_impl(ctx):
    python = _run(ctx, "-c", "import os, sys; print(os.path.realpath(sys.executable))")
    ctx.file("BUILD", _RUNTIME.format(python = python))
    ctx.file("python/BUILD")
    ctx.file("python/defs.bzl", _DEFS)

def _venv_hub_impl(ctx):
    _run(ctx, str(ctx.path(ctx.attr._script)), str(ctx.path(".")))

_VENV = {"venv": attr.label(doc = "pyvenv.cfg of the virtual environment", mandatory = True)}

rules_python = repository_rule(
    implementation = _rules_python_impl,
    attrs = _VENV,
    doc = "py_library and py_test under rules_python's name, and a toolchain with the environment's bare interpreter.",
)

venv_hub = repository_rule(
    implementation = _venv_hub_impl,
    attrs = dict(_VENV, _script = attr.label(default = "//:tools/bazel/venv_hub.py")),
    doc = "One package, @hub//name, for each distribution installed in the environment.",
)
