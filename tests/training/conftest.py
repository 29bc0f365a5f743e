"""Fixtures of the trainer's tests."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="module")
def _signals_are_given_back():
    """A run within a test's process listens to SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """One folder of prepared datasets for all runs."""
    return tmp_path_factory.mktemp("data")
