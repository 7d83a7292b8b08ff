"""Which behaviors the latent space represents, although the VAE was conditioned on none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lwdctl.analysis import latent_dimensions as dimensions
from lwdctl.analysis import latent_points as data
from lwdctl.analysis import separability
from lwdctl.analysis.analyses import AnalyzeLatentsConfig
from lwdctl.analysis.latent_points import UNKNOWN, Grouping, LatentPoints
from lwdctl.analysis.resample import Values
from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table, flatten_estimate
from lwdctl.artifacts.latents import LatentStore
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress, TqdmProgress
from lwdctl.evaluation.results import Estimate
from lwdctl.models.vae import PolicyVae

LATENT, PCA, TSNE, SNIPPET, STATE = "latent", "pca", "tsne", "snippet", "state"
SPACES = {
    LATENT: "Latent, all dimensions",
    PCA: "Latent, principal components 1 and 2",
    TSNE: "Latent, t-SNE in 2-D",
    SNIPPET: "Raw snippet, the encoder's input",
    STATE: "Observation at the snippet's first step",
}
"""Spaces that are compared; the last two are baselines that involve no learning."""
_FITTED = (LATENT, SNIPPET, STATE)
MAX_FIT_SIZE = 4096
"""Logistic regression with more components than these would take minutes."""
POSITION, OPERATOR = "position", "operator"
POINTS = "points"
METHOD = (
    "Snippets of one episode never classify each other: neighbors come from other episodes only,"
    " and logistic regression is cross-validated over episodes (at most"
    f" {separability.FOLDS} folds, components standardized). Every episode counts equally."
    " Intervals: Wilson's where every episode has one snippet or all episodes have the same"
    " accuracy, otherwise a bootstrap over episodes. Chance level is the larger of two numbers: the"
    " fraction of the largest category, and the k-NN accuracy where the categories are permuted"
    f" over episodes (mean of {separability.SHUFFLES}). The silhouette counts snippets of the same"
    " episode too; its value with permuted categories shows how much that raises it."
)

Note = tuple[str, str, Table | None]
"""Text of a section, caption of its figure, and its table."""
NO_NOTE: Note = ("", "", None)


@dataclass(frozen=True)
class GroupFindings:
    """How well one grouping is separated in every space.

    Attributes:
        points: Number of points whose category has at least two episodes.
        episodes: Number of their episodes.
        categories: Number of their categories.
        chance: Fraction of the largest category among the episodes.
        spaces: Space to its measures.
    """

    points: int
    episodes: int
    categories: int
    chance: float
    spaces: Mapping[str, separability.Separation]

    def summary(self) -> dict[str, Any]:
        """Return the summary numbers; those of other spaces carry the space's name."""
        latent = self.spaces[LATENT]
        numbers: dict[str, Any] = {
            "categories": self.categories,
            "episodes": self.episodes,
            "points": self.points,
            "chance": self.chance,
            "chance_shuffled": latent.knn_shuffled,
            "silhouette_shuffled": latent.silhouette_shuffled,
        }
        for space, found in self.spaces.items():
            prefix = "" if space == LATENT else f"{space}_"
            numbers[f"{prefix}silhouette"] = found.silhouette
            numbers |= flatten_estimate(f"{prefix}knn_accuracy", found.knn)
            if found.linear:
                numbers |= flatten_estimate(f"{prefix}linear_accuracy", found.linear)
        return numbers

    def table(self) -> Table:
        """Return one row per space."""
        columns = (
            "space", "silhouette", "silhouette, permuted", "k-NN accuracy", "95 % interval",
            "k-NN, permuted", "linear accuracy", "95 % interval of linear", "largest category",
        )  # fmt: skip
        rows = [
            (
                SPACES[space], round(found.silhouette, 3), round(found.silhouette_shuffled, 3),
                *_rounded(found.knn), round(found.knn_shuffled, 3), *_rounded(found.linear),
                round(self.chance, 3),
            )
            for space, found in self.spaces.items()
        ]  # fmt: skip
        return Table.of(columns, rows)

    def caption(self, neighbors: int) -> str:
        """Return the numbers of the full space as text for a figure."""
        latent = self.spaces[LATENT]
        return (
            f"All dimensions: {neighbors}-NN accuracy {latent.knn.value:.2f}"
            f" [{latent.knn.low:.2f}, {latent.knn.high:.2f}], chance"
            f" {max(self.chance, latent.knn_shuffled):.2f}; silhouette {latent.silhouette:.2f}"
            f" (permuted {latent.silhouette_shuffled:.2f})"
        )


@dataclass(frozen=True)
class LatentAnalysis:
    """Everything that was measured.

    Attributes:
        projections: Coordinates of the figures, t-SNE first.
        groups: Groupings to color by; with their measures where two categories can be tested.
        position: Space to R^2 of the position, empty with too few episodes; None where points are
            not colored by it.
        missing: Spaces that could not be measured.
    """

    config: AnalyzeLatentsConfig
    points: LatentPoints
    components: dimensions.Components
    projections: Sequence[dimensions.Projection]
    groups: Sequence[tuple[Grouping, GroupFindings | None]]
    position: Mapping[str, Estimate] | None
    use: dimensions.DimensionUse
    missing: Sequence[str]

    @property
    def notes(self) -> list[str]:
        """What was left out, and why."""
        notes = [
            f"numbers of {grouping.name} (no two categories have two episodes each)"
            for grouping, found in self.groups
            if not found
        ]
        if self.position == {}:
            notes.append(f"R² of the position (it needs {separability.FOLDS} episodes)")
        reasons = {
            SNIPPET: "together they are too large: use fewer --points",
            PCA: "latents of one dimension have one component",
        }
        return notes + [f"{SPACES[space]} ({reasons[space]})" for space in self.missing]

    @property
    def quantities(self) -> tuple[tuple[str, str, float, int], ...]:
        """Numbers of the latent space: key, name for readers, value, and digits to show."""
        components, use = self.components, self.use
        percent = f"{dimensions.VARIANCE_FRACTION:.0%}"
        first = float(components.fractions[: dimensions.SHOWN].sum())
        return (
            ("latent_size", "dimensions", self.points.latent.shape[1], 0),
            ("active_units", "active units", int(use.active.sum()), 0),
            ("effective_dimension", "effective dimension (participation ratio)",
             components.effective_dimension, 2),
            ("components_for_95_percent", f"components for {percent} of the variance",
             components.needed, 0),
            ("variance_fraction_of_4_components", "variance fraction of the first 4 components",
             first, 3),
            ("kl", "KL to the prior, all dimensions (nats)", float(use.kl.sum()), 2),
            ("std_of_posterior_mean", "mean standard deviation of the posterior mean",
             float(use.mean_std.mean()), 4),
            ("posterior_std", "mean standard deviation of the posterior",
             float(use.posterior_std.mean()), 4),
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Return the summary numbers, JSON-ready."""
        position: dict[str, Any] = {}
        for space, fit in (self.position or {}).items():
            position |= flatten_estimate("r2" if space == LATENT else f"{space}_r2", fit)
        return {
            "points": len(self.points.row),
            "episodes": self.points.episodes,
            "snippets": self.use.snippets,
            "sampled": self.config.sampled,
            **{key: value for key, _, value, _ in self.quantities},
            "groups": {one.name: found.summary() for one, found in self.groups if found},
            **({"position": position} if position else {}),
            "notes": self.notes,
        }


def analyze_latents(
    config: AnalyzeLatentsConfig,
    *,
    snippets: SnippetStore,
    vae: PolicyVae,
    latents: LatentStore,
    progress: Progress | None = None,
) -> Findings:
    """Project latents and measure which categories they separate.

    Raises:
        ConfigError: Too few snippets, equal latents, or nothing to color by.
    """
    rows = data.rows_of_split(latents, snippets, config.split)
    points = data.draw_points(
        latents, snippets, rows, config.points, config.seed, sampled=config.sampled
    )
    groupings, by_position = choose_groupings(config, snippets, points)
    with (progress or TqdmProgress()).task("analyze", 3 + len(groupings), "step") as task:
        components = dimensions.principal_components(points.latent)
        projections = _project(config, points, components)
        task.advance()
        spaces = {LATENT: points.latent, TSNE: projections[0].coordinates}
        if len(projections) > 1:
            spaces[PCA] = projections[1].coordinates
        raw = data.raw_snippets(vae, snippets, points)
        if raw is not None:
            spaces[SNIPPET] = raw
        spaces[STATE] = data.standardized_states(vae, latents, points)
        task.advance()
        groups = []
        for grouping in groupings:
            groups.append((grouping, group_findings(grouping, points, spaces, config)))
            task.advance()
        position = position_fits(points, spaces, config.seed) if by_position else None
        task.advance()
    return compose(
        LatentAnalysis(
            config=config,
            points=points,
            components=components,
            projections=projections,
            groups=groups,
            position=position,
            use=dimensions.dimension_use(latents.mean[rows], latents.log_variance[rows]),
            missing=[space for space in SPACES if space not in spaces],
        )
    )


def choose_groupings(
    config: AnalyzeLatentsConfig, snippets: SnippetStore, points: LatentPoints
) -> tuple[list[Grouping], bool]:
    """Return the groupings to color by, and whether to color by position.

    Raises:
        ConfigError: The points do not differ in a requested one.
    """
    found = data.groupings(snippets, points.episode)
    known = {item.name: item for item in found if item.varies}
    varies = [*known, *([POSITION] if points.position.min() < points.position.max() else [])]
    requested = ["label" if name == OPERATOR else name for name in config.color]
    for name in requested:
        if name not in varies:
            raise ConfigError(
                f"the snippets do not differ in their {name}: there is nothing to color by",
                f"they differ in: {', '.join(varies) or 'nothing'}",
            )
    chosen = dict.fromkeys(requested or varies)
    return [known[name] for name in chosen if name != POSITION], POSITION in chosen


def _project(
    config: AnalyzeLatentsConfig, points: LatentPoints, components: dimensions.Components
) -> list[dimensions.Projection]:
    """Return t-SNE, and the principal components two by two."""
    count = len(points.row)
    perplexity = dimensions.usable_perplexity(config.perplexity, count)
    title = f"t-SNE of {count} snippets (perplexity {perplexity:g})"
    embedded = dimensions.tsne(points.latent, perplexity, config.seed)
    found = [dimensions.Projection("tsne", title, embedded)]
    names = [
        f"Component {number} ({100 * fraction:.2g} % of the variance)"
        for number, fraction in enumerate(components.fractions, 1)
    ]
    for first in range(0, components.coordinates.shape[1] - 1, 2):
        title = f"Principal components {first + 1} and {first + 2}"
        coordinates = components.coordinates[:, first : first + 2]
        axes = (names[first], names[first + 1])
        found.append(dimensions.Projection(f"pca{first + 1}{first + 2}", title, coordinates, axes))
    return found


def group_findings(
    grouping: Grouping,
    points: LatentPoints,
    spaces: Mapping[str, Values],
    config: AnalyzeLatentsConfig,
) -> GroupFindings | None:
    """Measure a grouping in every space; None where fewer than two categories can be tested.

    `spaces` are coordinates (point, dim) by name.
    """
    use = separability.has_two_episodes(grouping.index, points.episode)
    category, episode = grouping.index[use], points.episode[use]
    categories = len(np.unique(category))
    if categories < 2:
        return None
    found = {
        space: separability.separation(
            values[use], category, episode, config.neighbors, config.seed,
            linear=space in _FITTED and values.shape[1] <= MAX_FIT_SIZE,
        )
        for space, values in spaces.items()
    }  # fmt: skip
    chance = separability.majority_fraction(category, episode)
    return GroupFindings(int(use.sum()), len(np.unique(episode)), categories, chance, found)


def position_fits(
    points: LatentPoints, spaces: Mapping[str, Values], seed: int
) -> dict[str, Estimate]:
    """Return space to R^2 of the position in the episode; empty with too few episodes."""
    if points.episodes < separability.FOLDS:
        return {}
    return {
        space: separability.linear_fit(values, points.position, points.episode, seed)
        for space, values in spaces.items()
        if space in _FITTED
    }


def compose(analysis: LatentAnalysis) -> Findings:
    """Return the sections in reading order, the table of points, and the summary numbers."""
    tables = {POINTS: points_table(analysis)}
    return Findings("Latents", list(_sections(analysis)), tables, analysis.summary())


def points_table(analysis: LatentAnalysis) -> Table:
    """Return one row per point: its snippet, its categories, its coordinates."""
    points, coordinates = analysis.points, analysis.components.coordinates
    groupings = [grouping for grouping, _ in analysis.groups]
    places = np.hstack([coordinates, analysis.projections[0].coordinates])
    rows = (
        (
            points.episode[row], points.start[row], f"{points.position[row]:.4f}",
            # The last entry is that of `UNKNOWN`.
            *((*grouping.categories, "")[grouping.index[row]] for grouping in groupings),
            *(f"{value:.6g}" for value in places[row]),
        )
        for row in range(len(points.row))
    )  # fmt: skip
    names = [f"pc{index + 1}" for index in range(coordinates.shape[1])]
    headings = [grouping.name for grouping in groupings]
    return Table.of(("episode", "start", "position", *headings, *names, "tsne1", "tsne2"), rows)


def _sections(analysis: LatentAnalysis) -> Iterator[Section]:
    yield Section("What was analyzed", _protocol(analysis))
    for grouping, found in analysis.groups:
        draw = partial(dimensions.draw_categories, grouping=grouping)
        note = _grouping_note(analysis, grouping, found) if found else NO_NOTE
        yield from _colored(analysis, f"{grouping.title}: ", f"-{grouping.name}", note, draw)
    if analysis.position is not None:
        draw = partial(dimensions.draw_position, position=analysis.points.position)
        note = _position_note(analysis.position)
        yield from _colored(analysis, "Position in the episode: ", "-position", note, draw)
    elif not analysis.groups:
        text = "The data has nothing to color by: one category, and one snippet per episode."
        for shown in analysis.projections:
            figure = dimensions.draw_plain(shown)
            yield Section(shown.title, text, shown.stem, drawing=figure)
    yield _dimension_section(analysis)


def _colored(
    analysis: LatentAnalysis, title: str, suffix: str, note: Note, draw: Callable[..., Figure]
) -> Iterator[Section]:
    """Yield a section per projection; the first one has the text and the numbers."""
    for shown in analysis.projections:
        text, caption, table = note
        figure = draw(shown, caption=caption)
        yield Section(title + shown.title, text, shown.stem + suffix, table, figure)
        note = NO_NOTE


def _protocol(analysis: LatentAnalysis) -> str:
    points = analysis.points
    latents = "one sample of each posterior" if analysis.config.sampled else "posterior means"
    text = (
        f"{len(points.row)} of {analysis.use.snippets} snippets from {points.episodes} episodes,"
        f" drawn evenly over episodes; latents are {latents}. The VAE was not conditioned on any of"
        f" the categories below. {METHOD} Two baselines are compared with the latent space:"
        f" '{SPACES[SNIPPET]}' holds the standardized observations and actions; '{SPACES[STATE]}'"
        " does not show the actions that follow (and falls below chance level where categories"
        " start from the same states)."
    )
    return text + "".join(f" Left out: {note}." for note in analysis.notes)


def _grouping_note(analysis: LatentAnalysis, grouping: Grouping, found: GroupFindings) -> Note:
    neighbors = analysis.config.neighbors
    text = (
        f"{found.categories} categories, {found.episodes} episodes, {found.points} snippets;"
        f" {neighbors} nearest neighbors vote. The first row is the full latent space, whose"
        " numbers are the ones to quote; those of projections describe the figures."
    )
    if found.points < (grouping.index != UNKNOWN).sum():
        text += " Categories of a single episode are drawn, but not counted."
    return text, found.caption(neighbors), found.table()


def _position_note(position: Mapping[str, Estimate]) -> Note:
    text = (
        "Where in its episode a snippet starts, as a fraction of the episode. R² of ridge"
        " regression, cross-validated over episodes; chance level is 0. Intervals: bootstrap over"
        " episodes."
    )
    if not position:
        return text, "", None
    fit = position[LATENT]
    rows = ((SPACES[space], *_rounded(one)) for space, one in position.items())
    table = Table.of(("space", "R² of the position", "95 % interval"), rows)
    return text, f"All dimensions: R² {fit.value:.2f} [{fit.low:.2f}, {fit.high:.2f}]", table


def _dimension_section(analysis: LatentAnalysis) -> Section:
    use = analysis.use
    rows = ((name, round(value, digits)) for _, name, value, digits in analysis.quantities)
    text = (
        f"Standard deviations and KL are over all {use.snippets} snippets; effective dimension and"
        " variance fractions are of the latents in the figures. KL is the mean divergence of a"
        " snippet's posterior from the prior N(0, 1)."
    )
    if not use.active.any():
        text += " No dimension is active: posteriors equal the prior, sampled latents its noise."
    table, figure = Table.of(("quantity", "value"), rows), dimensions.draw_dimensions(use)
    return Section("Latent dimensions", text, "dimensions", table, figure)


def _rounded(one: Estimate | None) -> tuple[float | None, str | None]:
    return (round(one.value, 3), f"{one.low:.3f} to {one.high:.3f}") if one else (None, None)
