"""`analyze latents`: which behaviors the latent space knows, though nobody labeled them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from lwdctl.analysis.latent_baselines import raw_snippets, standard_states
from lwdctl.analysis.latent_findings import (
    LATENT,
    PCA,
    SNIPPET,
    SPACES,
    STATE,
    TSNE,
    group_findings,
    position_findings,
)
from lwdctl.analysis.latent_health import latent_health
from lwdctl.analysis.latent_pictures import View
from lwdctl.analysis.latent_sections import LatentAnalysis, compose, points_csv
from lwdctl.analysis.latent_table import (
    Grouping,
    LatentPoints,
    draw_points,
    groupings,
    rows_of_split,
)
from lwdctl.analysis.projections import Components, principal_components, tsne, usable_perplexity
from lwdctl.analysis.sections import write_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.durable import write_durably
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import AnalyzeLatentsConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.policies.loading import load_vae
from lwdctl.stages.stage import StageContext
from lwdctl.training.encode import ACTIVE_VARIANCE

Spaces = dict[str, npt.NDArray[np.float64]]


POSITION, OPERATOR = "position", "operator"
COLORS = ("task", "label", OPERATOR, "level", "success", POSITION)
POINTS = "points.csv"


def run(
    config: AnalyzeLatentsConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Analyze and publish an `analysis` artifact.

    Raises:
        ConfigError: Too few snippets, equal latents, or nothing of what was asked for.
    """
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
    model = load_vae(vae, torch.device("cpu"))
    spaces = {LATENT: points.latent, TSNE: views[0].coordinates}
    if len(views) > 1:
        spaces[PCA] = views[1].coordinates
    raw = raw_snippets(model, snippets, points)
    if raw is not None:
        spaces[SNIPPET] = raw
    spaces[STATE] = standard_states(model, latents, points)
    return spaces
