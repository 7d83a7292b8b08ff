"""Every recipe under pipelines/ fits the stages as they are now."""

import re
from pathlib import Path

import pytest

from lwdctl.analysis.comparison import compare_evaluations
from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import LwdctlError
from lwdctl.pipeline.recipe import make_plan, read_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "pipelines").glob("*.toml"))
README = ROOT / "pipelines/README.md"
RECORDS = ROOT / "pipelines/records"


def test_there_is_a_recipe_for_every_experiment():
    assert {path.stem for path in RECIPES} >= {
        "quickstart", "pusht", "pusht_grid", "pusht_dp", "pusht_timing", "pusht_samplers",
        "lift", "can", "lift_grid", "lift_operators",
        "metaworld10", "metaworld_cost", "metaworld_snips", "mt10",
        "halfcheetah", "halfcheetah_unconditional", "halfcheetah_100", "walker2d", "ant",
        "hammer", "hammer_subtask", "ablation_denoiser", "ablation_decoder", "ablation_beta_kl",
        "ablation_width", "ablation_layout", "pusht_fair", "pusht_settings", "pusht_paper",
        "metaworld_paper", "lift_paper", "two_ways",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("lift-absolute", 3), ("lift-absolute-noise1", 3), ("lift-absolute-dp", 3),
        ("lift-absolute-dp-every8", 3), ("lift-absolute16", 3), ("lift-absolute16-dp", 3),
        ("lift-absolute-mlp-plain", 3), ("lift-absolute-mlp-equipped", 3),
        ("pusht-nearest16", 3), ("pusht-nearest64", 3),
        ("pusht-sampled64", 3), ("pusht-guided16", 3), ("pusht-unguided16", 3),
        ("pusht-dp16-every8", 3), ("pusht-dp16-guided", 3), ("pusht-dp16-hidden", 3),
        ("pusht-dp16-ensembled", 3), ("two_ways", 3),
    ],
)  # fmt: skip
def test_the_results_are_what_the_records_say(name, seeds):
    artifacts = [Artifact.open(path) for path in sorted(RECORDS.glob(f"{name}-seed*"))]
    assert len(artifacts) == seeds
    for artifact in artifacts:
        artifact.check()
    comparison = compare_evaluations(artifacts, RECORDS)
    results = (ROOT / "pipelines/RESULTS.md").read_text()
    assert name in results
    for row in comparison.results:
        low, high = row.success.low, row.success.high
        assert f"{row.success.value:.3f}" in results
        assert f"[{low:.3f}, {high:.3f}]" in results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "horizons"),
    [
        ("unet64", 3), ("dp64", 3), ("ldp64", 3), ("unet128", 3), ("dp128", 3), ("ldp128", 3),
        ("ldp16", 2), ("mlp-plain", 1), ("mlp-equipped", 1), ("dp128-ensembled", 1),
        ("dp64-ensembled", 1),
    ],
)  # fmt: skip
def test_the_rows_of_long_horizons_are_what_the_records_say(name, horizons):
    places = [*RECORDS.glob(f"pusht-{name}-seed*"), *RECORDS.glob(f"pusht-{name}-every8-seed*")]
    artifacts = [Artifact.open(path) for path in sorted(places)]
    for artifact in artifacts:
        artifact.check()
    results = (ROOT / "pipelines/RESULTS.md").read_text().replace("**", "")
    best, last = (
        [
            row
            for row in compare_evaluations(artifacts, RECORDS, metric=metric).results
            if row.latent in {"", "sampled"}
        ]
        for metric in ("max_overlap", "final_overlap")
    )
    assert len({row.horizon for row in best}) == horizons
    for horizon in {row.horizon for row in best}:
        cells = [
            f"{one.score.value:.3f}, {other.score.value:.3f}, {one.success.value:.2f}"
            for one, other in zip(best, last, strict=True)
            if one.horizon == horizon
        ]
        assert len(cells) == 4
        assert " | ".join(cells) in results


@pytest.mark.parametrize("name", ["tuning", "guided"])
def test_the_text_on_guided_chunks_is_what_the_records_say(name):
    artifact = Artifact.open(RECORDS / f"pusht-dp64-{name}-seed0")
    artifact.check()
    results = (ROOT / "pipelines/RESULTS.md").read_text()
    text = results.partition("*Keeping to the previous chunk.*")[2].partition("## ")[0]
    for row in artifact.manifest.summary["results"]:
        assert f"{row['metrics']['max_overlap']:.3f}" in text


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("LWD", "unet64"), ("Diffusion Policy", "dp64"),
        ("LWD, 128 steps", "unet128"), ("Diffusion Policy, 128 steps", "dp128"),
        ("Diffusion Policy, 16 steps", "dp16"),
        ("LWD, 16 steps, guidance 1.5", "guided16"), ("LDP", "ldp64"), ("LDP, 16 steps", "ldp16"),
        ("LDP, 128 steps", "ldp128"), ("Lift, Diffusion Policy, 64 steps", "lift-absolute-dp"),
    ],
)  # fmt: skip
def test_the_learning_curves_are_what_the_records_say(name, stem):
    results = (ROOT / "pipelines/RESULTS.md").read_text()
    stem = stem if stem.startswith("lift") else f"pusht-{stem}"
    records = sorted(RECORDS.glob(f"{stem}-convergence-seed*"))
    assert len(records) == results.count(f"\n| {name}, seed ") > 0
    for seed, path in enumerate(records):
        artifact = Artifact.open(path)
        artifact.check()
        summary = artifact.manifest.summary
        metric = summary["metric"]
        points = [f"{point['mean']:.3f}" for point in summary["curves"][metric].values()]
        gain = f"{summary['gains'][metric]['gain']:+.3f}".replace("-0.000", "+0.000")
        assert f"| {name}, seed {seed} | {' | '.join(points)} | {gain} [" in results


@pytest.mark.parametrize("stem", ["two_ways-diversity", "two_ways-diversity-anywhere"])
def test_how_often_two_draws_agree_is_what_the_records_say(stem):
    results = (ROOT / "pipelines/RESULTS.md").read_text()
    records = sorted(RECORDS.glob(f"{stem}-seed*"))
    assert len(records) == 3
    for seed, path in enumerate(records):
        artifact = Artifact.open(path)
        artifact.check()
        found = artifact.manifest.summary["sampled"]
        more, low, high = (
            f"{found[f'draw_agreement_difference{end}']:+.3f}" for end in ("", "_low", "_high")
        )
        assert f" {seed} | {found['draw_agreement']:.3f} | {more} [{low}, {high}] |" in results


def test_the_rows_from_the_papers_settings_to_ours_are_what_the_records_say():
    results = (ROOT / "pipelines/RESULTS.md").read_text()
    section = results.partition("## `pusht_from_paper.toml`")[2].partition("\n## ")[0]
    records = sorted(RECORDS.glob("pusht-from-paper64*-seed0"))
    assert len(records) == section.count("\n|") - 2  # a row each, beside the head of the table
    for path in records:
        artifact = Artifact.open(path)
        artifact.check()
        for row in artifact.manifest.summary["results"]:
            if row["task"] == "all" and row["latent"] == "sampled":
                best, last = row["metrics"]["max_overlap"], row["metrics"]["final_overlap"]
                assert f"| {best:.3f}, {last:.3f}, {row['success']:.2f} |" in section


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("smoke", [False, True])
def test_recipe_makes_a_plan(path, smoke):
    recipe = read_recipe(path)
    plan = make_plan(recipe, smoke=smoke)
    assert plan
    assert recipe.expected
    assert all(item.source for item in recipe.expected)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_is_filled_in(path):
    header = read_recipe(path).header
    assert header.title
    assert header.paper
    assert header.command == f"lwdctl run pipelines/{path.name}"
    assert header.time
    assert header.device


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_training_and_evaluation_has_a_toy_size(path):
    recipe = read_recipe(path)
    heavy = [s for s in recipe.stages if re.match(r"collect|train-|eval|analyze recon", s.command)]
    assert [stage.id for stage in heavy if not stage.smoke] == []


@pytest.mark.parametrize("smoke", [False, True])
def test_a_name_means_the_same_in_every_recipe(smoke):
    """Else recipes that could share an artifact in one workspace would make two of it."""
    meant, differ = {}, []
    for path in RECIPES:
        for step in make_plan(read_recipe(path), smoke=smoke):
            key = (step.stage.artifact_type, step.name)
            if step.stage.artifact_type == "evaluation":  # a name may hold several
                continue
            if meant.setdefault(key, step.config) != step.config:
                differ.append(f"{path.stem}: {key}")
    assert differ == []


def test_the_options_for_the_papers_size_fit_the_stages():
    """The comment at a recipe's head gives options; every `--set` there must be valid."""
    refused = []
    for path in RECIPES:
        said = re.findall(r"^#.*", path.read_text(), re.MULTILINE)
        words = re.findall(r"--set (\S+=[^\s;,)]+)", "\n".join(said))
        sweeps = re.findall(r"--sweep (\S+=[\d,]+)", "\n".join(said))
        try:
            make_plan(read_recipe(path, sweeps), assignments=words)
        except LwdctlError as error:
            refused.append(f"{path.stem}: {error.message}")
    assert refused == []


def test_the_readme_gives_the_measurement_of_every_recipe():
    rows = re.findall(r"^\| `(\w+\.toml)` \|(.*)\|$", README.read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == [path.name for path in RECIPES]
    for name, rest in rows:
        claim, measured, commit = (cell.strip() for cell in rest.split("|"))
        assert claim, name
        assert bool(commit) == (measured != "not measured yet"), name
        assert measured == "not measured yet" or re.search(r"\d", measured), name
