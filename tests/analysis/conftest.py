import pytest

from lwdctl.analysis import statistics
from lwdctl.artifacts.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "runs")


@pytest.fixture(autouse=True)
def _fresh_draws():
    """Drawn counts are kept by shape; a test that changes their number must not leave them."""
    yield
    statistics._seed_counts.cache_clear()
    statistics._state_counts.cache_clear()


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    monkeypatch.setattr(statistics, "PERMUTATIONS", 499)
    statistics._seed_counts.cache_clear()
    statistics._state_counts.cache_clear()
