import time

import pytest

from tests.measure.slow import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The only clock there is."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock
