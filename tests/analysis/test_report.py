"""What a report shows: the manifests' numbers, what is missing, and nothing that would run."""

import html
import re
import shutil
from itertools import pairwise

import pytest
from report_chain import (
    ARMS,
    EVIL,
    NAME,
    analysis,
    arm,
    chain,
    evaluation,
    page,
    snippets,
    vae,
)

from lwdctl.analysis.report import content
from lwdctl.analysis.report.content import CaptionedTable, read_rows
from lwdctl.analysis.report.pages import numeric_columns
from lwdctl.analysis.report.report import Expected, RecipeResults
from lwdctl.analysis.report.results import results_of
from lwdctl.artifacts.manifest import recording
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import SilentProgress

pytestmark = pytest.mark.usefixtures("few_resamples")


def text_of(markup):
    """Return what a reader reads: no styles, no tags, single spaces."""
    plain = re.sub(r"<style>.*?</style>|<[^>]*>", " ", markup, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(plain))


@pytest.fixture
def made(workspace):
    store, model, found = chain(workspace, videos=1)
    analysis(workspace, model)
    return store, model, found


def recipe(*expected, **changes):
    facts = {
        "title": "Toys", "path": "toys.toml", "paper": "Table 9", "time": "1 s", "device": "toy",
        "command": "lwdctl run toys.toml", "smoke": False, "expected": expected, "missing": (),
    }  # fmt: skip
    return RecipeResults(**facts | changes)


@pytest.mark.slow
def test_the_numbers_are_the_manifests(workspace, made):
    text = text_of(page(workspace, made[-1]))
    cells = made[-1].manifest.summary["results"]
    assert [cell["success"] for cell in cells] == [0.8, 0.1, 0.0]
    assert "lwd: success 0.800 [0.490, 0.943] in 10 episodes." in text
    for cell in cells:
        assert f"{cell['success']:.3f} [" in text
    assert "7 demonstrations (1 of them held out), 210 steps" in text
    assert "control: the latent of another task or behavior" in text
    assert "Paired tests: minus lwd on the same initial states" in text


@pytest.mark.slow
def test_measured_beside_expected_is_visible(workspace, made):
    numbers = [
        Expected("success", "task all", "0.8 [0.49, 0.94]", "≥ 0.7", True, "the goal"),
        Expected("success", "latent other", "0.1", "≤ 0.05", False, "a control"),
        Expected("return", "", "-", "≥ 1", None, ""),
    ]
    markup = page(workspace, made[-1], recipes=[recipe(*numbers, missing=("analysis",))])
    text = text_of(markup)
    assert "0.8 [0.49, 0.94] expected ≥ 0.7" in text
    assert "Toys" in re.search("<h1>(.*)</h1>", markup)[1]
    assert "1 of 3 expected numbers met." in text
    assert re.findall(r'class="verdict (\w+)">(.*?)</span>', markup) == [
        ("met", "met"), ("missed", "MISSED"), ("open", "not measured"),
    ]  # fmt: skip
    assert "toys.toml: no artifact that is up to date for analysis" in text
    assert "reproduces Table 9" in text
    assert "lwdctl run toys.toml" in text


@pytest.mark.slow
def test_a_toy_run_says_so(workspace, made):
    text = text_of(page(workspace, made[-1], recipes=[recipe(smoke=True)]))
    assert "its numbers mean nothing" in text
    assert "A toy run is not compared" in text


@pytest.mark.slow
def test_nothing_from_a_users_file_becomes_markup(workspace, made):
    markup = page(workspace, made[-1])
    assert EVIL not in markup
    assert html.escape(EVIL).replace("&#x27;", "&#39;") in markup
    assert "<script" not in markup
    assert NAME in markup
    # Whatever it loads stands in the file itself.
    loaded = re.findall(r'(?:src|href|poster|srcset|data)="([^"]{0,30})', markup)
    assert loaded
    assert {item.partition(":")[0] for item in loaded if not item.startswith("#")} == {"data"}
    assert "url(" not in markup
    assert "@import" not in markup


@pytest.mark.slow
def test_headings_tables_and_pictures_can_be_followed_without_sight(workspace, made):
    markup = page(workspace, made[-1])
    assert '<html lang="en">' in markup
    assert '<meta name="viewport" content="width=device-width' in markup
    levels = [int(level) for level in re.findall(r"<h(\d)", markup)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all("scope=" in head for head in re.findall(r"<th[ >][^>]*", markup))
    pictures = re.findall(r"<img [^>]*?alt=\"([^\"]*)\"", markup)
    assert len(pictures) == markup.count("<img ")
    assert all(pictures)


@pytest.mark.slow
def test_the_analyses_of_the_lineage_are_shown_the_newest_of_each(workspace, made):
    _, model, found = made
    analysis(workspace, model, title="Newer latents")
    other = vae(workspace, snippets(workspace, label="elsewhere"))
    analysis(workspace, other, title="Of something else")
    text = text_of(page(workspace, found))
    assert "Newer latents" in text
    assert "Latents analysis/" not in text
    assert "Of something else" not in text
    assert "0.125" in text
    assert "Table of 40 rows" in text


@pytest.mark.slow
def test_curves_videos_and_commands_are_there(workspace):
    with recording(command=f"lwdctl make --name {NAME}", stage="make"):
        _, model, found = chain(workspace, videos=1)
    with recording(stage="analyze latents"):
        analysis(workspace, model)
    markup = page(workspace, found)
    text = text_of(markup)
    assert f"vae/{NAME}:v1: reconstruction against training steps; last: training 0.06667" in markup
    assert markup.count('src="data:video/mp4;base64,') == len(ARMS)
    assert markup.count('src="data:image/jpeg;base64,') == len(ARMS)
    assert "lwd-sampled, episode 0, push, solved" in text
    assert text.count(f"lwdctl make --name {NAME}") == 1
    assert f"analysis/{NAME}:v1, lwdctl analyze latents" in text
    assert f"# analysis/{NAME}:v1: its manifest records no command" in text
    assert "ab" * 32 in text


@pytest.mark.slow
def test_a_video_that_does_not_fit_is_named(workspace, made, monkeypatch):
    monkeypatch.setattr(content, "VIDEO_BYTES", 2500)
    markup = page(workspace, made[-1])
    assert markup.count("data:video/mp4") == 2
    assert "video left out for its size (0.0 MB)" in markup
    monkeypatch.setattr(content, "MOST_EPISODES", 1)
    assert "1 of 3 recorded episodes are shown" in page(workspace, made[-1])


@pytest.mark.slow
def test_the_same_workspace_gives_the_same_bytes(workspace, made):
    assert page(workspace, made[-1]) == page(workspace, made[-1])


def test_one_condition_without_videos_log_or_analysis_says_what_is_missing(workspace):
    model = vae(workspace, snippets(workspace), log=False)
    found = evaluation(workspace, model, [arm("dp", "1011", latent="")])
    text = text_of(page(workspace, found))
    assert "no metrics.jsonl among its files" in text
    assert "No videos were recorded" in text
    assert "No analysis of these artifacts" in text
    assert "no paired tests: there is no policy 'lwd'" in text
    assert "dp: success 0.750" in text


@pytest.mark.slow
def test_without_any_success_the_score_leads_by_behavior(workspace):
    fast = arm("lwd", "000", score=90.0, label="expert")
    slow = arm("lwd", "000", score=10.0, label=EVIL)
    for item in slow["episodes"]:
        item["seed"] += 50
    fast["episodes"] += slow["episodes"]
    fast["results"][0]["by_label"] = {"expert": {"episodes": 3, "metrics": {"overlap": 90.0}}}
    _, _, found = chain(workspace, [fast])
    text = text_of(page(workspace, found))
    assert f"lwd, {EVIL}: overlap 10 [10, 10] in 3 episodes." in text
    assert re.search(r"lwd, expert .{0,80} 90 \[90, 90\] 3 episodes", text)
    assert "defines no success" in text


@pytest.mark.slow
def test_bars_of_labels_put_the_method_first(workspace):
    arms = [
        arm("lwd", "000", score=90.0, label="expert"),
        arm("dp", "000", score=10.0, label="expert"),
    ]
    _, _, found = chain(workspace, arms)
    text = text_of(page(workspace, found))
    assert "lwd, expert: overlap 90 [90, 90] in 3 episodes." in text
    assert text.index("lwd, expert") < text.index("dp, expert")


@pytest.mark.slow
def test_bars_of_labels_name_their_horizon_where_there_are_several(workspace):
    arms = [arm("lwd", "000", score=90.0 - horizon, label="expert") for horizon in (16, 32)]
    arms[1]["results"][0]["horizon"] = 32
    _, model, found = chain(workspace, arms[:1])
    other = evaluation(workspace, model, arms[1:], name="far")
    text = text_of(page(workspace, found, other))
    assert "lwd, expert, horizon 16: overlap 74 [74, 74] in 3 episodes." in text
    assert re.search(r"lwd, expert, horizon 32 .{0,80} 58 \[58, 58\] 3 episodes", text)


@pytest.mark.slow
def test_all_scores_zero_is_no_reason_to_hide_success(workspace):
    _, _, found = chain(workspace, [arm("lwd", "0000", score=0.0)])
    assert "lwd: success 0.000 [0.000, 0.490] in 4 episodes." in text_of(page(workspace, found))


@pytest.mark.slow
def test_rows_of_several_evaluations_say_which_they_are_of(workspace):
    """They may differ in how policies act, which changes what acting costs."""
    _, model, first = chain(workspace, [arm("lwd", "1111")])
    guided = arm("lwd", "1111")
    guided["results"][0] |= {"guidance": 2.0, "cost": {"flops_per_step": 4e6}}
    second = evaluation(workspace, model, [guided], name="guided")
    (result,) = results_of([first, second], workspace.root, None, None, SilentProgress())
    (costs,) = (table for table in result.tables if table.caption == "Cost of acting")
    assert [dict(zip(costs.columns, row, strict=True)) for row in costs.rows] == [
        {"policy": "lwd", "latent": "sampled", "training seed": "0", "horizon": "16",
         "evaluation": item.reference, "FLOPs per step": flops}
        for item, flops in ((first, "2e+06"), (second, "4e+06"))
    ]  # fmt: skip


def test_evaluations_that_cannot_be_compared_stand_beside_each_other(workspace):
    _, model, found = chain(workspace)
    far = arm("lwd", "11")
    far["results"][0]["env"] = "elsewhere"
    other = evaluation(workspace, model, [far], name="far")
    text = text_of(page(workspace, found, other))
    assert text.count("not compared with the other evaluations") == 2
    assert "lwd: success 1.000" in text
    assert "lwd: success 0.800" in text


@pytest.mark.slow
def test_what_cannot_be_compared_at_all_is_shown_from_the_manifest(workspace):
    _, _, found = chain(workspace)
    for path in (found.path / "episodes").iterdir():
        path.write_text("{}")
    text = text_of(page(workspace, found))
    assert "no comparison:" in text
    assert f"Results of {found.reference}" in text
    assert "0.800 [0.250, 0.750]" in text
    with pytest.raises(ConfigError, match="no evaluated policy"):
        page(workspace, chain(workspace)[-1], against="nobody")


def test_inputs_that_are_gone_are_named(workspace, made):
    _, model, found = made
    shutil.rmtree(model.path)
    text = text_of(page(workspace, found))
    assert "inputs are gone or were changed (see Lineage)" in text
    assert f"the input vae/{NAME}:v1 is gone" in text


@pytest.mark.slow
def test_different_commits_and_uncommitted_changes_are_reported(workspace, monkeypatch):
    from lwdctl.artifacts import manifest

    states = iter([{"commit": "a" * 40, "dirty": False}, {"commit": "b" * 40, "dirty": True}])
    kept = {"commit": "b" * 40, "dirty": False}
    monkeypatch.setattr(manifest, "_git_state", lambda checkout: next(states, kept))
    _, _, found = chain(workspace)
    text = text_of(page(workspace, found))
    assert "made at 2 different commits (see Lineage)" in text
    assert f"aaaaaaaaa (snippets/{NAME}:v1); bbbbbbbbb (vae/{NAME}:v1" in text
    assert "1 of 3 artifacts were made with changes that no commit holds" in text


@pytest.mark.slow
def test_a_recipe_without_an_evaluation_is_its_analyses(workspace):
    model = vae(workspace, snippets(workspace))
    text = text_of(page(workspace, model, analysis(workspace, model), recipes=[recipe()]))
    assert "There is no evaluation among these artifacts." in text
    assert "Silhouette" in text


def test_half_a_line_of_a_log_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1, "kl": NaN}\n[3]\n{"update": 2, "kl"')
    rows, broken = read_rows(path.read_bytes())
    assert len(rows) == 1
    assert broken == 2


def test_columns_of_numbers_are_distinguished_from_text():
    rows = (("a", "0.5 [0.1, 0.9]", "1,024", "–", "episode"), ("b", "–", "<0.001", "–", "16"))
    assert numeric_columns(CaptionedTable(("w", "e", "n", "no", "mix"), rows)) == [
        False, True, True, False, False,
    ]  # fmt: skip
