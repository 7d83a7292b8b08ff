import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from lwdctl.analysis import resample
from lwdctl.artifacts.workspace import Workspace

# Tests beside this file import it too, and what it imports; both are found through this import.
sys.path.insert(0, str(Path(__file__).parent))
import report_chain  # noqa: F401

sys.path.pop(0)


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


@pytest.fixture
def opened(browser):
    """Open a page at a width, all of it unfolded; it must fit, and ask for nothing but itself.

    Yields the tab and what the console said.
    """

    @contextmanager
    def open_page(file, width):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(file.as_uri())
        tab.wait_for_load_state("load")
        tab.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true })")
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        yield tab, said
        assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}
        tab.close()

    return open_page
