"""The model card: the Hub's metadata, and what the report knows."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

import lwdctl
from lwdctl.analysis import resample
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.progress import SilentProgress
from lwdctl.sharing.card import build_card
from lwdctl.sharing.hub import Address
from lwdctl.sharing.plan import plan_push

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from report_chain import arm

sys.path.pop(0)
QUIET = SilentProgress()
HERE = {"diffusion": "diffusion/toy:v1", "vae": "vae/toy:v1"}


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr(resample, "RESAMPLES", 200)
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()
    yield
    resample._seed_counts.cache_clear()
    resample._state_counts.cache_clear()


def evaluate(workspace, model, records, protocol="toy protocol", name="toy"):
    with workspace.begin("evaluation", name, config={"max_steps": 0}, inputs=[model]) as draft:
        (draft.path / "episodes").mkdir()
        for number, item in enumerate(records):
            (draft.path / f"episodes/{number}.json").write_text(json.dumps(item))
        cells = [cell for item in records for cell in item["results"]]
        return draft.publish({"results": cells, "protocol": protocol}, seed=0)


def card(workspace, reference="diffusion/toy", license_id="apache-2.0"):
    artifact = workspace.resolve("", reference)
    plan = plan_push(
        artifact, workspace.root, with_data=False, license_id=license_id, progress=QUIET
    )
    return build_card(plan, Address("me/toy-policy"), workspace.root, QUIET)


def metadata(made):
    _, header, _ = made.text.split("---\n", 2)
    return yaml.safe_load(header)


def test_the_metadata_are_the_hubs(ours):
    assert metadata(card(ours)) == {
        "license": "apache-2.0", "library_name": "lwdctl", "pipeline_tag": "robotics",
        "tags": ["lwdctl", "imitation-learning", "lwd"],
    }  # fmt: skip


@pytest.mark.slow
def test_results_are_those_of_the_artifact(ours):
    model = ours.resolve("diffusion")
    made = [{**arm("lwd", "1101111011"), "models": HERE}, arm("random", "0000000000", latent="")]
    others = [{**arm("dp", "0000000001"), "models": {"baseline": "baseline/other:v1"}}]
    evaluate(ours, model, [*made, *others])
    shown = card(ours)
    assert "toy protocol" in shown.text
    assert r"| lwd | sampled |" in shown.text
    assert r"0.800 \[0.490, 0.943\]" in shown.text  # 8 of 10, Wilson
    assert "| random |" in shown.text
    assert "| dp |" not in shown.text  # another model
    assert "](success.png)" in shown.text
    assert Image.open(io.BytesIO(shown.figure)).width > 500
    # The newest evaluation counts.
    worse = [{**arm("lwd", "0000000001"), "models": HERE}]
    evaluate(ours, model, worse, "a later protocol")
    assert r"0.100 \[" in card(ours).text
    assert "a later protocol" in card(ours).text


def test_an_artifact_without_evaluation_says_so(ours):
    shown = card(ours)
    assert "No evaluation" in shown.text
    assert shown.figure == b""
    assert "success.png" not in shown.text


def test_what_it_says_can_be_pasted(ours):
    text = card(ours).text
    assert "lwdctl pull me/toy-policy\n" in text
    assert "lwdctl eval --diffusion toy:v1 --latent sampled\n" in text
    assert 'policy = lwdctl.load_policy("hf:me/toy-policy")\n' in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text"),
    [("vae", "lwdctl show vae/toy:v1"), ("snippets", "lwdctl show snippets/toy:v1"),
     ("evaluation", "lwdctl report toy:v1")],
)  # fmt: skip
def test_every_artifact_has_a_card(ours, kind, text):
    records = [{**arm("lwd", "11"), "models": HERE}]
    evaluate(ours, ours.resolve("diffusion"), records)
    shown = card(ours, f"{kind}/toy")
    assert text in shown.text
    assert metadata(shown)["library_name"] == "lwdctl"
    assert ("0\\.2" in shown.text or "1.000" in shown.text) == (kind == "evaluation")


def test_the_lines_of_python_name_what_the_policy_is_conditioned_on(ours):
    code = card(ours).text.split("```python\n")[1].split("\n```")[0]
    policy = lwdctl.load_policy("diffusion/toy", workspace=ours)
    assert "label" in policy.trained.condition
    (reset,) = (line for line in code.splitlines() if line.startswith("policy.reset"))
    exec(reset, {"policy": policy})


EVIL = "x\n---\nlicense: mit\n# <script>alert(1)</script> | [a](b) ```"


@pytest.mark.slow
def test_texts_of_artifacts_stay_texts(tmp_path, monkeypatch):
    import toy_chain

    source = toy_chain.SOURCE
    env = replace(source.env, adapter=EVIL, tasks=(EVIL, "pull"))
    action = replace(source.action, units=EVIL, semantics=EVIL)
    evil = replace(source, env=env, labels=(EVIL, "fast"), action=action)
    monkeypatch.setattr(toy_chain, "SOURCE", evil)
    workspace = Workspace(tmp_path / "evil")
    toy_chain.publish_chain(workspace.root, toy_chain.TOY)
    records = [{**arm("lwd", "10", label=EVIL), "models": HERE}]
    evaluate(workspace, workspace.resolve("diffusion"), records, EVIL)
    made = card(workspace)
    assert metadata(made)["license"] == "apache-2.0"
    assert "\n# <script>" not in made.text
    assert "<script>" not in made.text.replace("\\<script\\>", "").split("## Results")[1]
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is not installed")
    page = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table").render(
        made.text.split("---\n", 2)[2]
    )  # fmt: skip
    assert "<script>" not in page
    assert "<a " not in page
    assert page.count("<h1>") == 1
    code = made.text.split("```python\n")[1].split("\n```")[0]
    compile(code, "card", "exec")


def test_data_sets_of_the_hub_are_named(ours, tmp_path):
    folder = tmp_path / "data" / "lerobot" / "pusht"
    folder.mkdir(parents=True)
    (folder.parent / "pusht.sha256").write_text("")
    with ours.begin("snippets", "hub", config={}) as draft:
        import shutil

        old = ours.resolve("snippets", "toy").path
        shutil.copytree(old / "snippets.zarr", draft.path / "snippets.zarr")
        sources = [{"path": str(folder)}, {"path": str(tmp_path / "data" / "mine.hdf5")}]
        draft.publish({"sources": sources})
    assert metadata(card(ours, "snippets/hub"))["datasets"] == ["lerobot/pusht"]


@pytest.mark.parametrize("name", ["mit", "cc-by-4.0", "yes", "null", "1.0"])
def test_licenses_stay_texts_in_yaml(ours, name):
    assert metadata(card(ours, license_id=name))["license"] == name
