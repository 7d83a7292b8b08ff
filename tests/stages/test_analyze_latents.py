"""`analyze latents` on small trained models, through the command line."""

import csv
import json

import numpy as np
import pytest
from trained_grid import TINY, do, write_snippets

from lwdctl.analysis import latents as analysis
from lwdctl.analysis.sections import read_sections
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.main import main
from lwdctl.core.errors import ConfigError
from lwdctl.models.vae import load_vae

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Six episodes of PushT in two labels, snippets of eight steps."""
    workspace = Workspace(tmp_path_factory.mktemp("latents"))
    write_snippets(workspace)
    do("train-vae", workspace, {**TINY, "snippet_length": 8, "policy_width": 8, "decoder": "xs"})
    do("encode", workspace, {"device": "cpu"})
    return workspace


def run(chain, capfd, *words):
    code = main(["analyze", "latents", "--workspace", str(chain.root), "-q", *words])
    return code, capfd.readouterr()


@pytest.mark.slow
def test_the_command_measures_draws_and_writes(chain, capfd):
    code, said = run(chain, capfd, "--points", "40", "--json")
    assert code == 0, said.err
    answer = json.loads(said.out)
    summary = answer["summary"]
    assert answer["artifact"] == "analysis/made:v1"
    assert (summary["points"], summary["episodes"]) == (40, 6)
    assert summary["active_units"] == chain.resolve("latents").manifest.summary["active_units"]
    label = summary["groups"]["label"]
    assert 0 <= label["knn_accuracy_low"] <= label["knn_accuracy"] <= label["knn_accuracy_high"]
    assert label["chance"] == 0.5
    assert {"snippet_knn_accuracy", "state_knn_accuracy", "tsne_silhouette"} <= set(label)
    assert {"r2", "snippet_r2", "state_r2"} <= set(summary["position"])
    artifact = chain.resolve("analysis")
    _, sections = read_sections(artifact.path)
    stems = {section.figure for section in sections} - {""}
    views = ("tsne", "pca12", "pca34")
    assert stems == {f"{v}-{by}" for v in views for by in ("label", "position")} | {"dimensions"}
    assert all((artifact.path / f"figures/{stem}.pdf").is_file() for stem in stems)
    with (artifact.path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40
    assert {row["label"] for row in rows} == {"slow", "fast"}
    kinds = [item.reference.partition("/")[0] for item in artifact.manifest.inputs]
    assert kinds == ["snippets", "vae", "latents"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_points(chain):
    def points(**values):
        return do("analyze latents", chain, values).payload("points.csv").read_text()

    wanted = {"points": 30, "color": ["operator"]}
    assert points(**wanted) == points(**wanted) != points(**wanted, sampled=False)


@pytest.mark.slow
def test_the_raw_snippet_is_what_the_encoder_reads(chain):
    """Feeding the baseline's rows to the encoder's first layers gives the stored latents."""
    import torch

    from lwdctl.analysis.latent_points import draw_points, raw_snippets, standardized_states
    from lwdctl.artifacts.snippets import SnippetStore

    snippets = SnippetStore.open(chain.resolve("snippets").path)
    latents = LatentStore.open(chain.resolve("latents").path)
    model = load_vae(chain.resolve("vae"), torch.device("cpu"))
    every = np.arange(latents.count)
    points = draw_points(latents, snippets, every, latents.count, 0, sampled=False)
    raw = torch.from_numpy(raw_snippets(model, snippets, points)).float()
    steps = raw.unflatten(1, (8, -1))
    with torch.no_grad():
        mean, _ = model.encoder(steps, torch.ones(steps.shape[:2]))
    np.testing.assert_allclose(mean.numpy(), latents.mean, atol=1e-4)
    states = standardized_states(model, latents, points)
    first = raw.numpy().reshape(len(raw), 8, -1)[:, 0, : model.spec.observation_size]
    np.testing.assert_allclose(states[:, -first.shape[1] :], first, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--color", "task"], "the snippets do not differ in their task"),
        (["--color", "color"], "'color' cannot be 'color'"),
        (["--points", "2"], "'points' must be at least 5"),
        (["--latents", "nothing"], "nothing"),
    ],
)
def test_a_bad_request_is_one_line_with_a_hint(chain, capfd, words, error):
    code, said = run(chain, capfd, *words)
    assert code in (1, 2)
    assert said.out == ""
    first, *rest = said.err.strip().splitlines()
    assert error in first
    assert all(line.strip().startswith("hint:") for line in rest)


def test_a_workspace_without_latents_says_how_to_make_some(tmp_path, capfd):
    code, said = run(Workspace(tmp_path), capfd)
    assert code == 1
    assert "lwdctl encode" in said.err


@pytest.mark.slow
def test_one_snippet_an_episode_of_one_category_is_drawn_plainly(chain, monkeypatch):
    monkeypatch.setattr(analysis, "choose_groupings", lambda *_: ([], False))
    artifact = do("analyze latents", chain, {"points": 12})
    assert artifact.manifest.summary["groups"] == {}
    assert (artifact.path / "figures/tsne.png").is_file()


def test_latents_that_are_all_the_same_are_refused(chain, monkeypatch):
    shape = LatentStore.open(chain.resolve("latents").path).mean.shape
    monkeypatch.setattr(LatentStore, "mean", np.zeros(shape, np.float32))
    with pytest.raises(ConfigError, match=r"all latents of .* are the same"):
        do("analyze latents", chain, {"sampled": False})
