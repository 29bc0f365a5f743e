"""py_test for files that pytest runs."""

load("@rules_python//python:defs.bzl", _py_test = "py_test")

def py_test(name, srcs, data = [], deps = [], **kwargs):
    """A py_test that ends as pytest does on its sources.

    Args:
      name: the target's name, the path of the test without its ending.
      srcs: the test's files, from the repository's root.
      data: files that the test reads.
      deps: what the test imports, beside pytest and the helpers in :tests.
      **kwargs: any other attribute of py_test.
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
