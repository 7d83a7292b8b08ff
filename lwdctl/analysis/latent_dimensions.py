"""How latents fill their space: projections, use of dimensions, and figures of both.

Figures have the width of a paper's column.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from lwdctl.analysis.latent_points import UNKNOWN, Grouping
from lwdctl.analysis.plotting import COLORS, new_figure, series_style
from lwdctl.analysis.resample import Values
from lwdctl.core.seeding import generator, seed_of_32_bits
from lwdctl.training.encode import ACTIVE_VARIANCE

SHOWN = 4
"""Principal components that figures show."""
VARIANCE_FRACTION = 0.95
WIDTH = 3.4
"""Inches: one column of a two-column paper."""
_LINE_HEIGHT, _LINE_LETTERS = 0.15, 58
_LAYERS = 8


@dataclass(frozen=True)
class Components:
    """Principal components of points.

    Attributes:
        coordinates: (point, component), the first `SHOWN` components or fewer.
        fractions: (component,) fraction of the variance, of all components.
        effective_dimension: Participation ratio of the covariance's eigenvalues.
        needed: Number of components for `VARIANCE_FRACTION` of the variance.
    """

    coordinates: Values
    fractions: Values
    effective_dimension: float
    needed: int


def principal_components(points: Values) -> Components:
    """Project points on their principal components.

    The participation ratio, (sum of eigenvalues)^2 / (sum of their squares), is d where d
    dimensions have equal variance and 1 where all points lie on a line.

    Source of the ratio: P. Gao and others, A theory of multineuronal dimensionality, dynamics
    and measurement, bioRxiv 214262 (2017).

    Args:
        points: (point, dim), at least two different ones.
    """
    fitted = PCA(svd_solver="full").fit(points)
    variance = fitted.explained_variance_
    fractions: Values = variance / variance.sum()
    enough = np.cumsum(fractions) >= VARIANCE_FRACTION
    return Components(
        coordinates=fitted.transform(points)[:, :SHOWN],
        fractions=fractions,
        effective_dimension=float(1.0 / (fractions**2).sum()),
        needed=int(np.argmax(enough)) + 1 if enough.any() else len(fractions),
    )


def usable_perplexity(wanted: float, points: int) -> float:
    """Return the perplexity, limited to a third of the other points."""
    return float(min(wanted, max(1.0, (points - 1) / 3)))


def tsne(points: Values, perplexity: float, seed: int) -> Values:
    """Embed points (point, dim) in the plane: (point, 2).

    Distances between distant clusters and the sizes of clusters have no meaning in the result.

    Source: L. van der Maaten and G. Hinton, Visualizing data using t-SNE, JMLR 9 (2008);
    scikit-learn's Barnes-Hut approximation, initialized with the principal components.

    Args:
        points: At least four points.
        perplexity: Effective number of neighbors, below the number of points.
        seed: Seed of the optimization.
    """
    state = seed_of_32_bits("t-SNE", seed)
    initial = "pca" if points.shape[1] >= 2 else "random"
    embedded = TSNE(perplexity=perplexity, init=initial, random_state=state).fit_transform(points)
    values: Values = embedded.astype(np.float64)
    return values


@dataclass(frozen=True)
class DimensionUse:
    """How each latent dimension is used, over snippets.

    Attributes:
        mean_std: (latent,) standard deviation of the posterior mean over snippets.
        posterior_std: (latent,) posterior standard deviation, mean over snippets; the prior's is 1.
        kl: (latent,) mean KL divergence of the posterior from the prior, in nats.
        active: (latent,) whether the posterior mean varies by more than `ACTIVE_VARIANCE`.
    """

    mean_std: Values
    posterior_std: Values
    kl: Values
    active: npt.NDArray[np.bool_]
    snippets: int


def dimension_use(mean: npt.NDArray[Any], log_variance: npt.NDArray[Any]) -> DimensionUse:
    """Measure how every latent dimension is used.

    The KL divergence is half of `sigma^2 + mu^2 - 1 - log sigma^2`; the VAE's loss leaves the
    factor to `beta_kl`.

    Source: Kingma and Welling, Auto-encoding variational Bayes (2014), appendix B.

    Args:
        mean: (snippet, latent) posterior means.
        log_variance: (snippet, latent) logarithms of the posterior variances.
    """
    center, log_var = mean.astype(np.float64), log_variance.astype(np.float64)
    kl = (0.5 * (np.exp(log_var) + center**2 - 1.0 - log_var)).mean(axis=0)
    mean_std = mean.std(axis=0).astype(np.float64)
    posterior_std = np.exp(0.5 * log_variance).mean(axis=0).astype(np.float64)
    return DimensionUse(mean_std, posterior_std, kl, mean_std**2 > ACTIVE_VARIANCE, len(mean))


@dataclass(frozen=True)
class Projection:
    """Points in the plane.

    Attributes:
        stem: Beginning of file names (`"tsne"`).
        coordinates: (point, 2).
        axes: Names of the two axes, empty where their units have no meaning.
    """

    stem: str
    title: str
    coordinates: Values
    axes: tuple[str, str] = ("", "")


def draw_categories(projection: Projection, grouping: Grouping, caption: str) -> Figure:
    """Draw points with one color and marker per category; points without one are gray."""
    shown = sorted(set(grouping.index.tolist()) - {UNKNOWN})
    longest = max((len(grouping.categories[index]) for index in shown), default=1)
    columns = max(1, min(len(shown), 60 // (longest + 5)))
    figure, axes = _panel(projection, caption, -(-len(shown) // columns))
    size = _marker_size(len(grouping.index))
    _scatter(axes, projection, grouping.index == UNKNOWN, size, color="0.8", marker=".")
    # In layers, so that the category drawn last does not hide the others.
    layer = generator("drawing order").integers(_LAYERS, size=len(grouping.index))
    for step in range(_LAYERS):
        for index in shown:
            here = (grouping.index == index) & (layer == step)
            _scatter(axes, projection, here, size, **series_style(index))
    for index in shown:
        name = grouping.categories[index].replace("_", " ")
        axes.scatter([], [], s=18, label=name, linewidths=0, **series_style(index))
    figure.legend(
        loc="outside lower center", ncols=columns, fontsize=7, frameon=False, handletextpad=0.2,
        columnspacing=0.8, labelspacing=0.25, borderpad=0.1,
    )  # fmt: skip
    return figure


def draw_position(projection: Projection, position: Values, caption: str) -> Figure:
    """Draw points colored by where in its episode each snippet starts."""
    figure, axes = _panel(projection, caption)
    order = generator("drawing order").permutation(len(position))
    drawn = axes.scatter(
        *projection.coordinates[order].T, c=position[order], cmap="viridis", vmin=0, vmax=1,
        s=_marker_size(len(position)), linewidths=0, rasterized=True,
    )  # fmt: skip
    bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("Start of the snippet (fraction of the episode)", size=7)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_plain(projection: Projection) -> Figure:
    """Draw points that have no property to color them by."""
    figure, axes = _panel(projection, "")
    everything = np.ones(len(projection.coordinates), bool)
    _scatter(axes, projection, everything, _marker_size(len(everything)), **series_style(0))
    return figure


def draw_dimensions(use: DimensionUse) -> Figure:
    """Draw each dimension's standard deviations and KL, sorted by that of the posterior mean."""
    order = np.argsort(-use.mean_std)
    rank = np.arange(1, len(order) + 1)
    figure, ((upper,), (lower,)) = new_figure(WIDTH, 3.6, rows=2, sharex=True)
    upper.plot(rank, use.mean_std[order], color=COLORS[0], label="of the mean")
    upper.plot(
        rank, use.posterior_std[order], color=COLORS[1], linestyle="--", label="of the posterior"
    )
    upper.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":", label="of the prior")
    upper.set_yscale("log")
    upper.set_ylabel("Standard deviation", size=8)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    lower.plot(rank, use.kl[order], color=COLORS[2])
    lower.set_ylim(bottom=0)
    lower.set_ylabel("KL (nats)", size=8)
    lower.set_xlabel("Latent dimension, sorted by the mean's standard deviation", size=8)
    for axes in (upper, lower):
        axes.tick_params(labelsize=7)
    return figure


def _panel(projection: Projection, caption: str, legend_rows: int = 0) -> tuple[Figure, Any]:
    lines = (projection.title, caption)
    title = "\n".join(textwrap.fill(line, _LINE_LETTERS) for line in lines)
    height = 2.9 + _LINE_HEIGHT * (legend_rows + title.count("\n"))
    figure, ((axes,),) = new_figure(WIDTH, height)
    axes.grid(visible=False)
    axes.set_title(title, size=7.5, loc="left")
    axes.tick_params(labelsize=7)
    axes.set_xlabel(projection.axes[0], size=8)
    axes.set_ylabel(projection.axes[1], size=8)
    if not any(projection.axes):
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, axes


def _scatter(
    axes: Any, projection: Projection, here: npt.NDArray[np.bool_], size: float, **style: Any
) -> None:
    points = projection.coordinates[here].T
    axes.scatter(*points, s=size, linewidths=0, rasterized=True, **style)


def _marker_size(points: int) -> float:
    return float(np.clip(8000 / points, 5.0, 16.0))
