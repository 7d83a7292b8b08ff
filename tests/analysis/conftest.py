import shutil

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


@pytest.fixture(scope="module")
def browser():
    """Chromium, which draws the pages as a reader sees them."""
    program = shutil.which("chromium")
    if not program:
        pytest.skip("no chromium on the path: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()
