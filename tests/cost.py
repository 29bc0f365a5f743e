"""Pytest plugin that prints the cost of a test run: CPU minutes, peak memory and the most expensive files."""

import os
import resource
import time
from collections import Counter
from itertools import chain

import pytest

CPU_MINUTES, GIGABYTES = 16, 2.0  # the budget of `make test` (docs/testing.md)
COSTS, WORKERS = pytest.StashKey[list](), pytest.StashKey[list]()


def cpu_seconds() -> float:
    """CPU time of this process and its terminated children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def pytest_configure(config):
    config.stash[COSTS] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    started = cpu_seconds()
    result = yield
    item.config.stash[COSTS].append((item.location[0], cpu_seconds() - started))
    return result


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cost"] = cpu_seconds(), peak_gigabytes(), session.config.stash[COSTS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    if cost := getattr(node, "workeroutput", {}).get("cost"):  # absent if the worker crashed
        node.config.stash.setdefault(WORKERS, []).append(cost)


def pytest_terminal_summary(terminalreporter, config):
    workers = config.stash.get(WORKERS, [])
    seconds = time.process_time() + sum(worker[0] for worker in workers) if workers else cpu_seconds()
    peak = max((worker[1] for worker in workers), default=peak_gigabytes())
    by_file = Counter()
    for file, spent in chain(config.stash[COSTS], *(worker[2] for worker in workers)):
        by_file[file] += spent
    terminalreporter.section("cost")
    terminalreporter.line(", ".join(f"{file} {spent:.0f} s" for file, spent in by_file.most_common(8)))
    terminalreporter.line(f"CPU time {seconds / 60:.1f} minutes (budget of `make test`: {CPU_MINUTES}), "
                          f"peak memory of a worker {peak:.2f} GB (budget: {GIGABYTES:.0f})")  # fmt: skip
