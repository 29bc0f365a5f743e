"""Chat templates, rendered in a process of their own under limits of time and memory."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("renderer.py")
SECONDS = 10.0
"""CPU time of one rendering, in seconds."""
BYTES = 2**30
"""Memory of the rendering process, in bytes."""


class ChatTemplate:
    """A Jinja template that may be hostile: it runs in a sandbox, in a process that ends if it exceeds a limit.

    The process starts with the first call of `render` and stays for the next ones. `name` is written in errors.
    """

    def __init__(self, source: str, *, name: str, seconds: float = SECONDS):
        self.source = source
        self._name = name
        self._limits = {"seconds": seconds, "bytes": BYTES}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._stop = lambda: None

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of `variables`, which are JSON values.

        Raises ValueError if the template has a fault, raises an error or exceeds a limit.
        """
        line = json.dumps({"template": self.source, "variables": variables, **self._limits})
        with self._lock:
            process = self._running()
            answer = ""
            try:
                answer = _ask(process, line)
            finally:
                if not answer.endswith("\n"):  # it has ended, or Ctrl-C interrupted us
                    fault = self._end(process)
        if not answer.endswith("\n"):
            raise ValueError(f"{self._name}: {fault}")
        answer = json.loads(answer)
        if "error" in answer:
            raise ValueError(f"{self._name}: {answer['error']}")
        return answer["text"]

    def _running(self) -> subprocess.Popen[str]:
        """The rendering process. It is started if it does not run, or if this process is a fork of its owner."""
        if self._process is None or self._owner != os.getpid():
            self._process, self._owner = _start(), os.getpid()
            self._stop = weakref.finalize(self, _stop, self._process, self._owner)
        return self._process

    def _end(self, process: subprocess.Popen[str]) -> str:
        """Ends `process` if it still runs; returns why it ended."""
        self._process = self._stop()
        if process.returncode == -signal.SIGPROF:
            return f"takes more than {self._limits['seconds']:g} seconds"
        return f"ended its process with exit code {process.returncode}"

    def __reduce__(self):
        raise TypeError(f"{self._name}: expected no pickling, since a process belongs to it; load the tokenizer again")


def _start() -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", str(_SCRIPT)]  # -P: do not import from the script's folder
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="ascii",
                            stderr=subprocess.DEVNULL, env=environment, process_group=0)  # fmt: skip


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """The answer to `line`; without a newline at its end if the process has ended."""
    if process.stdin is None or process.stdout is None:
        raise TypeError("process: expected pipes")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line + "\n")
        process.stdin.flush()
    return process.stdout.readline()


def _stop(process: subprocess.Popen[str], owner: int) -> None:
    """Ends `process` and closes its pipes, unless this process is a fork of its `owner`."""
    if os.getpid() != owner:
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.wait()
