"""Local replacements, for Bazel before 5, of the downloaded language rules, Python and package hub."""

_TOOLCHAIN = """
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
    python = str(ctx.path(ctx.attr.venv).dirname) + "/bin/python"
    result = ctx.execute([python] + list(arguments))
    if result.return_code:
        fail(result.stderr)
    return result.stdout.strip()

def _native_rules_impl(ctx):
    ctx.file(ctx.attr.package + "/BUILD")
    ctx.file(
        ctx.attr.package + "/defs.bzl",
        "\n".join(["%s = native.%s" % (rule, rule) for rule in ctx.attr.rules]),
    )

def _venv_python_impl(ctx):
    python = _run(ctx, "-c", "import os, sys; print(os.path.realpath(sys.executable))")
    ctx.file("BUILD", _TOOLCHAIN.format(python = python))

def _venv_hub_impl(ctx):
    _run(ctx, str(ctx.path(ctx.attr._script)), str(ctx.path(".")))

_VENV = {"venv": attr.label(doc = "pyvenv.cfg of the virtual environment", mandatory = True)}

native_rules = repository_rule(
    implementation = _native_rules_impl,
    attrs = {
        "package": attr.string(doc = "package that contains defs.bzl", mandatory = True),
        "rules": attr.string_list(doc = "built-in rules that defs.bzl exports", mandatory = True),
    },
    doc = "A rules_* repository that exports the built-in rules of this Bazel.",
)

venv_python = repository_rule(
    implementation = _venv_python_impl,
    attrs = _VENV,
    doc = "A toolchain with the base interpreter of the environment, which does not see the environment's packages.",
)

venv_hub = repository_rule(
    implementation = _venv_hub_impl,
    attrs = dict(_VENV, _script = attr.label(default = "//:tools/bazel/venv_hub.py")),
    doc = "One package @hub//name per distribution installed in the environment.",
)
