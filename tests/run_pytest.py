"""Main program of the `py_test` targets in BUILD: runs pytest on its arguments and returns pytest's exit code."""

import os
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import pytest


def interpreter(folder: Path) -> str:
    """A Python in `folder` with the import paths of this process, even if a test sets another PYTHONPATH."""
    venv.create(folder, symlinks=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    Path(site, "bazel.pth").write_text("\n".join(os.path.abspath(path) for path in sys.path if path))
    return str(folder / "bin" / "python")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path = [path for path in sys.path if Path(path).resolve() != here]  # plain pytest does not add it
    with tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR")) as folder:
        sys.executable = interpreter(Path(folder))
        code = pytest.main(sys.argv[1:])
    sys.exit(code)
