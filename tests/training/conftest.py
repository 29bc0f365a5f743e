import signal

import pytest


@pytest.fixture(autouse=True, scope="module")
def _signals_are_given_back():
    """Restores the SIGTERM handler, which a run in the test process replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")
