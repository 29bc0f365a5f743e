"""py_test for pytest files."""

load("@rules_python//python:defs.bzl", _py_test = "py_test")

def py_test(name, srcs, data = [], deps = [], **kwargs):
    """A py_test that runs pytest on its sources and returns pytest's exit code.

    Args:
      name: target name, the path of the test without its extension.
      srcs: test files, relative to the repository root.
      data: files that the test reads.
      deps: packages that the test imports, except pytest and the helpers in :tests.
      **kwargs: other attributes of py_test.
    """
    _py_test(
        name = name,
        srcs = srcs + ["tests/run_pytest.py"],
        args = srcs,
        data = data + ["pyproject.toml"],
        main = "tests/run_pytest.py",
        deps = deps + [":tests"],
        **kwargs
    )
