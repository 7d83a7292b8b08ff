"""`analyze latents`: which behaviors the latent space knows, though nobody labeled them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.stages.encode import ACTIVE_VARIANCE
from lwdctl.stages.stage import Stage, StageContext

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lwdctl.analysis.latent_pictures import View
    from lwdctl.analysis.latent_sections import LatentAnalysis
    from lwdctl.analysis.latent_table import Grouping, LatentPoints
    from lwdctl.analysis.projections import Components
    from lwdctl.artifacts.latents import LatentStore
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.core.progress import Progress

    Spaces = dict[str, npt.NDArray[np.float64]]

POSITION, OPERATOR = "position", "operator"
COLORS = ("task", "label", OPERATOR, "level", "success", POSITION)
POINTS = "points.csv"


@dataclass(frozen=True)
class AnalyzeLatentsConfig:
    """What to look at."""

    points: int = option(
        2000, "Snippets to draw at most, evenly over episodes", minimum=5, maximum=10_000
    )
    sampled: bool = option(True, "Draw latents from their posteriors instead of taking the means")
    color: tuple[str, ...] = option(
        (),
        "Any of task, label (operator is the same: multi-human data stores operators as labels),"
        " level, success, position (default: all that the data has more than one value of)",
        choices=COLORS,
    )
    split: str = option("all", "Whose snippets", choices=("all", "train", "validation"))
    perplexity: float = option(
        30.0, "t-SNE's effective number of neighbors; at most a third of the points", minimum=1
    )
    neighbors: int = option(5, "Neighbors that vote on a snippet's category", minimum=1)
    seed: int = option(0, "Seed of the snippets drawn, their latents, t-SNE and folds", minimum=0)


def run(
    config: AnalyzeLatentsConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Analyze and publish an `analysis` artifact.

    Raises:
        ConfigError: Too few snippets, equal latents, or nothing of what was asked for.
    """
    from lwdctl.analysis.latent_sections import compose, points_csv
    from lwdctl.analysis.sections import write_sections
    from lwdctl.artifacts.durable import write_durably
    from lwdctl.artifacts.latents import LatentStore
    from lwdctl.artifacts.snippets import SnippetStore

    source = inputs["latents"]
    latents, snippets = LatentStore.open(source.path), SnippetStore.open(inputs["snippets"].path)
    with context.workspace.begin(
        "analysis",
        context.name or source.name,
        config=to_mapping(config),
        inputs=[inputs["snippets"], inputs["vae"], source],
        resume=context.resume,
    ) as draft:
        found = _analyze(config, latents, snippets, inputs["vae"], context.progress)
        sections, figures = compose(found)
        write_sections(draft.path, f"Latents of {source.reference}", sections, figures)
        write_durably(draft.path / POINTS, points_csv(found).encode())
        return draft.publish(found.summary(), seed=config.seed)


def _analyze(
    config: AnalyzeLatentsConfig,
    latents: LatentStore,
    snippets: SnippetStore,
    vae: Artifact,
    progress: Progress,
) -> LatentAnalysis:
    from lwdctl.analysis.latent_findings import SPACES, group_findings, position_findings
    from lwdctl.analysis.latent_health import latent_health
    from lwdctl.analysis.latent_sections import LatentAnalysis
    from lwdctl.analysis.latent_table import draw_points, rows_of_split
    from lwdctl.analysis.projections import principal_components

    rows = rows_of_split(latents, snippets, config.split)
    points = draw_points(
        latents, snippets, rows, config.points, config.seed, sampled=config.sampled
    )
    shown, show_position = _what_to_show(config, snippets, points)
    with progress.task("analyze", 3 + len(shown), "step") as task:
        components = principal_components(points.latent)
        views = _views(config, points, components)
        task.advance()
        spaces = _spaces(latents, snippets, vae, points, views)
        task.advance()
        groups = {}
        for grouping in shown:
            groups[grouping.name] = group_findings(
                grouping, points, spaces, config.neighbors, config.seed
            )
            task.advance()
        position = position_findings(points, spaces, config.seed) if show_position else None
        task.advance()
    return LatentAnalysis(
        points=points,
        available=len(rows),
        sampled=config.sampled,
        neighbors=config.neighbors,
        components=components,
        views=views,
        groupings=shown,
        groups={name: found for name, found in groups.items() if found},
        position=position or {},
        show_position=show_position,
        health=latent_health(latents.mean[rows], latents.log_variance[rows], ACTIVE_VARIANCE),
        without=[space for space in SPACES if space not in spaces],
    )


def _what_to_show(
    config: AnalyzeLatentsConfig, snippets: SnippetStore, points: LatentPoints
) -> tuple[list[Grouping], bool]:
    """Return the groupings to color by, and whether to color by position."""
    from lwdctl.analysis.latent_table import groupings

    known = {item.name: item for item in groupings(snippets, points.episode) if item.varies}
    varies = [*known, *([POSITION] if points.position.min() < points.position.max() else [])]
    asked = ["label" if name == OPERATOR else name for name in config.color]
    for name in asked:
        if name not in varies:
            raise ConfigError(
                f"the snippets do not differ in their {name}: there is nothing to color by",
                f"they differ in: {', '.join(varies) or 'nothing'}",
            )
    chosen = dict.fromkeys(asked or varies)
    return [known[name] for name in chosen if name != POSITION], POSITION in chosen


def _views(
    config: AnalyzeLatentsConfig, points: LatentPoints, components: Components
) -> list[View]:
    """Project the points: t-SNE, and the principal components two by two."""
    from lwdctl.analysis.latent_pictures import View
    from lwdctl.analysis.projections import tsne, usable_perplexity

    count = len(points.row)
    perplexity = usable_perplexity(config.perplexity, count)
    title = f"t-SNE of {count} snippets (perplexity {perplexity:g})"
    views = [View("tsne", title, tsne(points.latent, perplexity, config.seed))]
    names = [
        f"Component {number} ({100 * share:.2g} % of the variance)"
        for number, share in enumerate(components.shares, 1)
    ]
    for first in range(0, components.coordinates.shape[1] - 1, 2):
        shown = slice(first, first + 2)
        title = f"Principal components {first + 1} and {first + 2}"
        stem = f"pca{first + 1}{first + 2}"
        axes = (names[first], names[first + 1])
        views.append(View(stem, title, components.coordinates[:, shown], axes))
    return views


def _spaces(
    latents: LatentStore,
    snippets: SnippetStore,
    vae: Artifact,
    points: LatentPoints,
    views: list[View],
) -> Spaces:
    """Return the latent space, its projections, and what was known before any learning."""
    import torch

    from lwdctl.analysis.latent_baselines import raw_snippets, standard_states
    from lwdctl.analysis.latent_findings import LATENT, PCA, SNIPPET, STATE, TSNE
    from lwdctl.policies.loading import load_vae

    model = load_vae(vae, torch.device("cpu"))
    spaces = {LATENT: points.latent, TSNE: views[0].coordinates}
    if len(views) > 1:
        spaces[PCA] = views[1].coordinates
    raw = raw_snippets(model, snippets, points)
    if raw is not None:
        spaces[SNIPPET] = raw
    spaces[STATE] = standard_states(model, latents, points)
    return spaces


STAGE = Stage(
    "analyze latents", "analysis", AnalyzeLatentsConfig, ("snippets", "vae", "latents"), run
)
