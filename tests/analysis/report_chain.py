"""Small artifacts with all that a report shows: data, a VAE and its log, episodes, an analysis."""

import json

from evaluation_grid import episode, record
from PIL import Image

from lwdctl.analysis.report.report import build_report
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table

EVIL = "<script>alert('x')</script>"
NAME = "a.b+c_d-1"
"""Every character that a name may have."""


def figure():
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 2))
    drawn.subplots().plot([0, 1], [0, 1])
    return drawn


def snippets(workspace, label=EVIL):
    with workspace.begin("snippets", NAME, config={"format": "toy", "paths": [label]}) as draft:
        (draft.path / "data.json").write_text("{}")
        summary = {
            "episodes": 7, "validation_episodes": 1, "steps": 210, "format": "toy",
            "episodes_by_label": {label: 7}, "success": 0.5,
            "sources": [{"path": f"/data/{label}.hdf5", "bytes": 9, "sha256": "ab" * 32}],
        }  # fmt: skip
        return draft.publish(summary, seed=3)


def vae(workspace, store, log=True):
    with workspace.begin("vae", NAME, config={"updates": 30, "beta_kl": 1e-5}, inputs=[store]) as d:
        rows = [
            {"update": i, "reconstruction": 2.0 / (i + 1), "kl": 5.0 + i, "learning_rate": 1e-3,
             **({"held_out_reconstruction": 3.0 / (i + 1)} if i % 5 == 0 else {})}
            for i in range(30)
        ]  # fmt: skip
        name = "metrics.jsonl" if log else "other.txt"
        (d.path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return d.publish({}, seed=0)


def evaluation(workspace, model, records, name=NAME, videos=0):
    """Publish an evaluation whose summary's result rows are those of the records."""
    config = {"max_steps": 0, "perturbation_probability": 0.1}
    with workspace.begin("evaluation", name, config=config, inputs=[model]) as draft:
        (draft.path / "episodes").mkdir()
        for item in records:
            cell = item["results"][-1]
            stem = f"{cell['policy']}-{cell['latent']}".strip("-")
            (draft.path / f"episodes/{stem}.json").write_text(json.dumps(item))
            for index in range(videos):
                folder = draft.path / "videos" / stem
                folder.mkdir(parents=True, exist_ok=True)
                Image.effect_noise((1200, 400), 30).save(folder / f"episode-{index:03d}.png")
                (folder / f"episode-{index:03d}.mp4").write_bytes(bytes(1000))
        cells = [cell for item in records for cell in item["results"]]
        return draft.publish({"results": cells, "protocol": f"toy {EVIL}"}, seed=0)


def arm(policy, solved, latent="sampled", score=0.5, label=""):
    """Return the record of one policy; `solved` is a text of ones and zeros."""
    episodes = [episode(i, item == "1", score) for i, item in enumerate(solved)]
    for item in episodes:
        item["label"] = label
    made = record(policy, episodes, latent=latent, cost={"flops_per_step": 2e6})
    made["results"][0] |= {
        "success": solved.count("1") / len(solved), "success_low": 0.25, "success_high": 0.75,
    }  # fmt: skip
    return made


ARMS = (
    arm("lwd", "1101111011"),
    arm("lwd", "0100000000", latent="shuffled"),
    arm("random", "0000000000", latent=""),
)


def analysis(workspace, latents, title="Latents"):
    with workspace.begin("analysis", NAME, config={"split": "all"}, inputs=[latents]) as draft:
        sections = (
            Section(f"Silhouette {EVIL}", "One.\n\nTwo.", "plot",
                    Table(("group", "value"), ((EVIL, 0.125), ("shuffled", None))), figure()),
            Section("Long", "Many rows.", "", Table(("i",), tuple((i,) for i in range(40)))),
        )  # fmt: skip
        Findings(title, sections).save(draft.path, title)
        return draft.publish({"silhouette": 0.125})


def page(workspace, *sources, recipes=(), **options):
    return build_report(sources, workspace.root, recipes, **options).html


def chain(workspace, records=ARMS, **options):
    """Publish a whole lineage; return its snippets, its VAE and its evaluation."""
    store = snippets(workspace)
    model = vae(workspace, store)
    return store, model, evaluation(workspace, model, records, **options)
