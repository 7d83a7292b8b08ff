"""An analysis of latents as sections, figures, a table of points, and headline numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lwdctl.analysis.latent_findings import (
    PCA,
    SNIPPET,
    SPACES,
    STATE,
    GroupFindings,
    position_summary,
    position_table,
)
from lwdctl.analysis.latent_health import LatentHealth
from lwdctl.analysis.latent_pictures import (
    View,
    draw_dimensions,
    draw_groups,
    draw_plain,
    draw_position,
)
from lwdctl.analysis.latent_table import UNKNOWN, Grouping, LatentPoints
from lwdctl.analysis.projections import SHOWN, VARIANCE_SHARE, Components
from lwdctl.analysis.sections import Section
from lwdctl.analysis.separability import FOLDS, SHUFFLES, Rate
from lwdctl.analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawn = tuple[Section, "Figure | None"]

HOW_TO_READ = (
    "An episode never answers for itself: neighbors come from other episodes only, and"
    f" logistic regression is cross-validated over episodes (at most {FOLDS} folds, components"
    " standardized). Every episode counts alike. Intervals: Wilson's where every episode has one"
    " snippet or all episodes score alike, otherwise a bootstrap over episodes. Chance is the"
    " larger of two numbers: the share of the largest category, and the k-NN accuracy where the"
    f" categories are shuffled over episodes (mean of {SHUFFLES}). The silhouette counts snippets"
    " of the own episode too; its value with shuffled categories shows how much that lifts it."
)


@dataclass(frozen=True)
class LatentAnalysis:
    """Everything that was found.

    Attributes:
        points: The snippets drawn.
        available: Snippets they were drawn from.
        sampled: Whether latents were drawn from the posterior.
        neighbors: Neighbors that vote.
        components: Principal components.
        views: Pictures' coordinates, t-SNE first.
        groupings: Groupings to color by.
        groups: Grouping's name to numbers, where two categories could be tested.
        position: Space to R^2, empty where the position does not vary.
        show_position: Whether to color by position.
        health: One number per dimension.
        without: Spaces that could not be measured.
    """

    points: LatentPoints
    available: int
    sampled: bool
    neighbors: int
    components: Components
    views: Sequence[View]
    groupings: Sequence[Grouping]
    groups: Mapping[str, GroupFindings]
    position: Mapping[str, Rate]
    show_position: bool
    health: LatentHealth
    without: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        untested = [item.name for item in self.groupings if item.name not in self.groups]
        said = [
            f"numbers of {name} (no two categories have two episodes each)" for name in untested
        ]
        if self.show_position and not self.position:
            said.append(f"R² of the position (cross-validation takes {FOLDS} episodes)")
        reasons = {SNIPPET: "together they are too large: take fewer --points"}
        reasons[PCA] = "latents of one dimension have one component"
        return said + [f"{SPACES[space]} ({reasons[space]})" for space in self.without]

    def summary(self) -> dict[str, Any]:
        """Return the headline numbers, JSON-ready."""
        position = {"position": position_summary(self.position)} if self.position else {}
        return {
            "points": len(self.points.row),
            "episodes": self.points.episodes,
            "snippets": self.available,
            "latent_size": self.points.latent.shape[1],
            "sampled": self.sampled,
            "effective_dimension": self.components.effective_dimension,
            "components_for_95_percent": self.components.needed,
            "variance_of_4_components": float(self.components.shares[:SHOWN].sum()),
            **self.health.summary(),
            "groups": {name: found.summary() for name, found in self.groups.items()},
            **position,
            "notes": self.notes,
        }


def compose(analysis: LatentAnalysis) -> tuple[list[Section], dict[str, Figure]]:
    """Write the sections in reading order and draw their figures."""
    drawn = list(_sections(analysis))
    figures = {section.figure: figure for section, figure in drawn if figure is not None}
    return [section for section, _ in drawn], figures


def points_csv(analysis: LatentAnalysis) -> str:
    """Return one line per point: where it comes from, its categories, its coordinates."""
    points = analysis.points
    coordinates = analysis.components.coordinates
    names = [f"pc{index + 1}" for index in range(coordinates.shape[1])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = [grouping.name for grouping in analysis.groupings]
    writer.writerow(["episode", "start", "position", *heads, *names, "tsne1", "tsne2"])
    for row in range(len(points.row)):
        categories = [
            "" if grouping.index[row] == UNKNOWN else grouping.categories[grouping.index[row]]
            for grouping in analysis.groupings
        ]
        places = [*coordinates[row], *analysis.views[0].coordinates[row]]
        writer.writerow([
            points.episode[row], points.start[row], f"{points.position[row]:.4f}", *categories,
            *(f"{value:.6g}" for value in places),
        ])  # fmt: skip
    return buffer.getvalue()


def _sections(analysis: LatentAnalysis) -> Iterator[Drawn]:
    yield Section("What was looked at", _protocol(analysis)), None
    for grouping in analysis.groupings:
        yield from _of_grouping(analysis, grouping)
    if analysis.show_position:
        yield from _of_position(analysis)
    if not analysis.groupings and not analysis.show_position:
        for view in analysis.views:
            text = "The data holds nothing to color by: one category, and one snippet an episode."
            yield Section(view.title, text, view.stem), draw_plain(view, "")
    yield _of_dimensions(analysis)


def _protocol(analysis: LatentAnalysis) -> str:
    points = analysis.points
    how = "one draw from each posterior" if analysis.sampled else "posterior means"
    lines = [
        (
            f"{len(points.row)} of {analysis.available} snippets from {points.episodes} episodes,"
            f" drawn evenly over episodes; latents are {how}. The VAE was told none of the"
            " categories below."
        ),
        HOW_TO_READ,
        (
            f"Two spaces stand beside the latent's: '{SPACES[SNIPPET]}' is the standardized"
            f" observations and actions, '{SPACES[STATE]}' does not know what is done next (and"
            " falls below chance where categories begin from the same states)."
        ),
        *(f"Left out: {note}." for note in analysis.notes),
    ]
    return " ".join(lines)


def _of_grouping(analysis: LatentAnalysis, grouping: Grouping) -> Iterator[Drawn]:
    found = analysis.groups.get(grouping.name)
    for number, view in enumerate(analysis.views):
        text, table, caption = "", None, ""
        if found:
            caption = found.caption(analysis.neighbors) if number == 0 else ""
            text = "" if number else _read_group(analysis, found)
            table = None if number else found.table()
        stem = f"{view.stem}-{grouping.name}"
        title = f"{grouping.title}: {view.title}"
        yield Section(title, text, stem, table), draw_groups(view, grouping, caption)


def _read_group(analysis: LatentAnalysis, found: GroupFindings) -> str:
    single = found.points < (found.grouping.index != UNKNOWN).sum()
    return (
        f"{found.categories} categories, {found.episodes} episodes, {found.points} snippets;"
        f" {analysis.neighbors} nearest neighbors vote. The first row is the full latent"
        " space, the numbers to quote; those of projections describe the pictures."
        + (" Categories of a single episode are drawn, but not counted." if single else "")
    )


def _of_position(analysis: LatentAnalysis) -> Iterator[Drawn]:
    for number, view in enumerate(analysis.views):
        text, table = "", None
        if number == 0:
            text = (
                "Where in its episode a snippet starts, as a share of the episode. R² of ridge"
                " regression, cross-validated over episodes; 0 is chance. Intervals: bootstrap"
                " over episodes."
            )
            table = position_table(analysis.position) if analysis.position else None
        fit = analysis.position.get("latent")
        caption = (
            f"All dimensions: R² {fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]" if fit else ""
        )
        title = f"Position in the episode: {view.title}"
        figure = draw_position(view, analysis.points.position, "" if number else caption)
        yield Section(title, text, f"{view.stem}-position", table), figure


def _of_dimensions(analysis: LatentAnalysis) -> Drawn:
    health, components = analysis.health, analysis.components
    rows = [
        ("dimensions", analysis.points.latent.shape[1]),
        ("active units", int(health.active.sum())),
        ("effective dimension (participation ratio)", round(components.effective_dimension, 2)),
        (f"components for {VARIANCE_SHARE:.0%} of the variance", components.needed),
        ("variance of the first 4 components", round(float(components.shares[:SHOWN].sum()), 3)),
        ("KL to the prior, all dimensions (nats)", round(float(health.kl.sum()), 2)),
        ("mean spread of the posterior means", round(float(health.spread.mean()), 4)),
        ("mean posterior deviation", round(float(health.posterior.mean()), 4)),
    ]
    text = (
        f"Spread, posterior deviation and KL are of all {health.snippets} snippets; effective"
        " dimension and variance shares of the latents in the pictures. KL is the mean"
        " divergence of a snippet's posterior from the prior N(0, 1)."
    )
    if not health.active.any():
        text += " No dimension is active: posteriors are the prior, and sampled latents its noise."
    section = Section(
        "Latent dimensions", text, "dimensions", Table(("quantity", "value"), tuple(rows))
    )
    return section, draw_dimensions(health)
