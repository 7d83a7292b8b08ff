"""A report in Chromium, at the width of a desk and of a phone."""

import pytest
from report_chain import ARMS, analysis, arm, chain, page

WIDTHS = (1280, 390)


@pytest.fixture
def file(workspace, tmp_path):
    long = arm("lwd", "10" * 5, latent="oracle")
    long["results"][0]["by_label"] = {
        f"label-{'x' * 60}": {"episodes": 5, "metrics": {f"metric_{i}": 1.0 for i in range(12)}}
    }
    _, model, found = chain(workspace, [*ARMS, long], videos=1)
    analysis(workspace, model)
    path = tmp_path / "report.html"
    path.write_text(page(workspace, found))
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("width", WIDTHS)
def test_it_renders_alone_and_fits(opened, file, width):
    with opened(file, width) as (tab, said):
        widths = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
        assert len(widths) > len(ARMS)
        assert min(widths) > 0
        assert tab.evaluate("document.querySelector('h1').getBoundingClientRect().height > 10")
        # The picture of a wide figure scrolls in its own box; others scale.
        boxes = tab.evaluate(
            "[...document.images].filter(i => !i.closest('.scroll')).map(i => i.clientWidth)"
        )
        assert boxes
        assert max(boxes) <= width
    # The toy videos are zeros, which no decoder takes; nothing else may be said.
    assert [line for line in said if "video" not in line.lower()] == []


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
def test_no_address_is_asked_even_where_a_file_smuggles_one_in(browser, file):
    text = file.read_text()
    probe = '<img src="http://127.0.0.1:9/leak.png" alt="">'
    file.write_text(text.replace("<footer>", probe + "<footer>"))
    tab = browser.new_page()
    failed, said = [], []
    tab.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(file.as_uri())
    tab.wait_for_load_state("load")
    assert any("Content Security Policy" in line for line in said)
    leaks = [why for url, why in failed if "leak" in url]
    assert all("csp" in why.lower() for why in leaks), leaks
    tab.close()
