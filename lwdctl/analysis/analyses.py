"""The table of analyses.

An analysis is one module, and its settings and one row here, which import nothing heavy: the
command line, the recipes and the generic stage `lwdctl.stages.analyze` read this table. Its
function takes its settings, a `progress` and opened inputs by keyword, and returns
`lwdctl.analysis.sections.Findings`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from lwdctl.configs import LINEAGE, Horizon, RolloutConfig, Split, StageSettings, lineage_read
from lwdctl.core.config import option
from lwdctl.core.seeding import EVALUATION_SEED_START, TUNING_SEED_START

Color = Literal["task", "label", "operator", "level", "success", "position"]


@dataclass(frozen=True)
class AnalyzeLatentsConfig(StageSettings):
    """Settings of `lwdctl analyze latents`."""

    points: int = option(
        2000, "Largest number of snippets, evenly over the episodes", minimum=5, maximum=10_000
    )
    sampled: bool = option(True, "Draw latents from their posteriors instead of taking the means")
    color: tuple[Color, ...] = option(
        (),
        "What to color points by; operator is the same as label, since multi-human data stores"
        " operators as labels (default: everything that the data has more than one value of)",
    )
    split: Split = option("all", "Split to draw snippets from")
    perplexity: float = option(
        30.0, "t-SNE's effective number of neighbors; at most a third of the points", minimum=1
    )
    neighbors: int = option(5, "Number of nearest neighbors that classify a snippet", minimum=1)
    seed: int = option(
        0, "Seed of the snippets drawn, of their latents, of t-SNE and of the folds", minimum=0
    )


@dataclass(frozen=True)
class AnalyzeBehaviorConfig(StageSettings):
    """Settings of `lwdctl analyze behavior`."""

    source: int | None = option(
        None,
        "Largest number of source trajectories per task and behavior, drawn at random"
        " (default: all)",
        minimum=1,
    )
    seed: int = option(0, "Seed of every draw: equal sample sizes, halves of the source", minimum=0)


@dataclass(frozen=True)
class AnalyzeDiversityConfig(RolloutConfig):
    """Settings of `lwdctl analyze diversity`."""

    count: int = option(
        60,
        "Largest number of recorded initial states to run from, in the labels' proportions",
        minimum=4,
    )
    split: Split = option(
        "all",
        "Split of the demonstrations whose initial states are used; 'validation' holds states that"
        " no model was trained on",
    )
    draws: int = option(2, "Policies sampled per initial state", minimum=1)
    latent: tuple[Literal["sampled", "oracle", "mean"], ...] = option(
        ("sampled", "oracle", "mean"),
        "Where LWD's latents come from. sampled: the diffusion model; oracle: encoded from the"
        " demonstration whose initial state it is; mean: the mean of all",
    )
    task: str | None = option(None, "Task to analyze, where the data has several")
    modes: int | None = option(
        None,
        "Number of clusters of demonstrations to use as modes (default: the labels, or without"
        " labels the number of clusters with the best silhouette)",
        minimum=2,
    )
    horizon: int | Literal["episode"] | None = option(
        None,
        "Action horizon: steps executed per re-plan; 'episode' plans once per episode (default:"
        " the snippet length the model was trained with)",
        minimum=1,
    )
    max_steps: int | None = option(
        None, "Number of steps to compare (default: the shortest demonstration's)", minimum=1
    )
    seed: int = option(
        0, "Seed of the initial states, of sampling and of the clustering", minimum=0
    )

    def reads(self, named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the artifact types that the latents come from."""
        return lineage_read(self.latent, named)


@dataclass(frozen=True)
class AnalyzeReconstructionConfig(RolloutConfig):
    """Settings of `lwdctl analyze reconstruction`."""

    count: int = option(50, "Number of snippets to reconstruct", minimum=2)
    split: Split = option("validation", "Split to draw snippets from")
    latent: tuple[Literal["oracle", "mean", "sampled"], ...] = option(
        ("oracle", "mean"),
        "Where the decoded policies' latents come from. oracle: encoded from the snippet itself;"
        " mean: the mean of all; sampled: the diffusion model, given what was observed at the"
        " snippet's start",
    )
    seed: int = option(0, "Seed of the snippets drawn and of sampling", minimum=0)

    def reads(self, named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the artifact types that are read: the diffusion model only to sample."""
        # The mean latent is that of training snippets, which this stage encodes itself.
        return LINEAGE if "sampled" in self.latent or "diffusion" in named else LINEAGE[:2]


@dataclass(frozen=True)
class AnalyzeConvergenceConfig(RolloutConfig):
    """Settings of `lwdctl analyze convergence`."""

    episodes: int = option(
        50, "Episodes per task, and per label of a conditioned policy", minimum=2
    )
    seed: int = option(
        TUNING_SEED_START,
        "First evaluation seed; by default of initial states apart from those of `lwdctl eval`",
        minimum=EVALUATION_SEED_START,
    )
    task: tuple[str, ...] = option(
        (), r"Tasks to run; write \, for a comma within one (default: all tasks of the data)"
    )
    horizon: Horizon | None = option(
        None,
        "Action horizon: steps executed per re-plan; 'episode' plans once per episode (default:"
        " the one that the model was trained for)",
        minimum=1,
    )
    perturbation: float = option(
        0.0, "Magnitude of random perturbations, in the environment's unit", minimum=0
    )
    max_steps: int | None = option(
        None, "Largest number of steps per episode (default: the environment's)", minimum=1
    )
    margin: float = option(
        0.05,
        "Largest gain of the last third of training that still counts as none, in the unit of the"
        " environment's score (normalized_score: of 100)",
        minimum=0,
    )

    def reads(self, named: Collection[str] = ()) -> tuple[str, ...]:
        """Return the artifact types that are read: a named baseline, or else LWD's lineage."""
        return ("baseline",) if "baseline" in named else LINEAGE


@dataclass(frozen=True)
class Analysis:
    """One row of the table.

    Attributes:
        name: Name on the command line, after `analyze`.
        config: Configuration class; its `reads`, if any, selects among `inputs`.
        inputs: Artifact types that it reads, the primary input last.
        function: `"module:function"`, imported when it runs.
        arguments: What the function takes: `snippets` (`SnippetStore`), `vae` (`PolicyVae`),
            `latents` (`LatentStore`), `evaluation` (evaluated runs), `policy` (`TrainedLwd`),
            `snapshots` (training steps with the VAE as it was then) and `trained` (any policy, the
            training steps of its snapshots, and a function that loads a snapshot into it).
        summary: One line for `--help`.
        simulates: Whether it runs or asks the environment that the data name.
    """

    name: str
    config: type
    inputs: tuple[str, ...]
    function: str
    arguments: tuple[str, ...]
    summary: str
    simulates: bool = True


ANALYSES = (
    Analysis(
        "latents",
        AnalyzeLatentsConfig,
        ("snippets", "vae", "latents"),
        "lwdctl.analysis.latents:analyze_latents",
        ("snippets", "vae", "latents"),
        "Look for behaviors in the latent space: PCA, t-SNE, separability.",
        simulates=False,
    ),
    Analysis(
        "behavior",
        AnalyzeBehaviorConfig,
        ("snippets", "evaluation"),
        "lwdctl.analysis.behavior:analyze_behavior",
        ("snippets", "evaluation"),
        "Compare the policies' trajectories with those they were trained on.",
    ),
    Analysis(
        "diversity",
        AnalyzeDiversityConfig,
        LINEAGE,
        "lwdctl.analysis.diversity:analyze_diversity",
        ("snippets", "policy"),
        "Compare the diversity and modes of generated behavior with the demonstrations'.",
    ),
    Analysis(
        "reconstruction",
        AnalyzeReconstructionConfig,
        LINEAGE,
        "lwdctl.analysis.reconstruction:analyze_reconstruction",
        ("snippets", "policy", "snapshots"),
        "Run decoded snippets from their own initial states; compare with the recording.",
    ),
    Analysis(
        "convergence",
        AnalyzeConvergenceConfig,
        (*LINEAGE, "baseline"),
        "lwdctl.analysis.convergence:analyze_convergence",
        ("trained",),
        "Run the snapshots of a training: does the policy still improve at its end?",
    ),
)


def analysis_of(config: Any) -> Analysis:
    """Return the analysis that a configuration belongs to."""
    return next(row for row in ANALYSES if row.config is type(config))
