"""What tests of the command line share."""

import pytest

from lwdctl.analysis import resample


@pytest.fixture
def few_resamples(monkeypatch):
    """Bootstrap with few resamples, for tests that do not look at intervals."""
    monkeypatch.setattr(resample, "RESAMPLES", 400)
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()
    yield
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()
