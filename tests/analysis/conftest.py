import pytest

from lwdctl.analysis import resample
from lwdctl.artifacts.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "runs")


@pytest.fixture(autouse=True)
def _fresh_draws():
    """Drawn counts are kept by shape; a test that changes their number must not leave them."""
    yield
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(resample, "RESAMPLES", 400)
    monkeypatch.setattr(resample, "PERMUTATIONS", 499)
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()
