"""What tests of the command line share."""

import pytest

from lwdctl.analysis import statistics


@pytest.fixture
def few_resamples(monkeypatch):
    """Bootstrap with few resamples, for tests that do not look at intervals."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    statistics._seed_counts.cache_clear()
    statistics._state_counts.cache_clear()
    yield
    statistics._seed_counts.cache_clear()
    statistics._state_counts.cache_clear()
