"""The table of analyses.

An analysis is one module and one row here: the command line, the recipes and the generic stage
`lwdctl.stages.analyze` read this table. Its function takes its configuration, a `progress` and
opened inputs by keyword, and returns `lwdctl.analysis.sections.Findings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lwdctl import configs


@dataclass(frozen=True)
class Analysis:
    """One row of the table.

    Attributes:
        name: Name on the command line, after `analyze`.
        config: Configuration class; its `reads`, if any, selects among `inputs`.
        inputs: Artifact types that it reads, the primary input last.
        function: `"module:function"`, imported when it runs.
        arguments: What the function takes: `snippets` (`SnippetStore`), `vae` (`PolicyVae`),
            `latents` (`LatentStore`), `evaluation` (evaluated runs), `policy` (`TrainedLwd`) and
            `snapshots` (training steps with the VAE as it was then).
        summary: One line for `--help`.
    """

    name: str
    config: type
    inputs: tuple[str, ...]
    function: str
    arguments: tuple[str, ...]
    summary: str


ANALYSES = (
    Analysis(
        "latents",
        configs.AnalyzeLatentsConfig,
        ("snippets", "vae", "latents"),
        "lwdctl.analysis.latents:analyze_latents",
        ("snippets", "vae", "latents"),
        "Look for behaviors in the latent space: PCA, t-SNE, separability.",
    ),
    Analysis(
        "behavior",
        configs.AnalyzeBehaviorConfig,
        ("snippets", "evaluation"),
        "lwdctl.analysis.behavior:analyze_behavior",
        ("snippets", "evaluation"),
        "Compare the policies' trajectories with those they were trained on.",
    ),
    Analysis(
        "diversity",
        configs.AnalyzeDiversityConfig,
        configs.LINEAGE,
        "lwdctl.analysis.diversity:analyze_diversity",
        ("snippets", "policy"),
        "Compare the diversity and modes of generated behavior with the demonstrations'.",
    ),
    Analysis(
        "reconstruction",
        configs.AnalyzeReconstructionConfig,
        configs.LINEAGE,
        "lwdctl.analysis.reconstruction:analyze_reconstruction",
        ("snippets", "policy", "snapshots"),
        "Run decoded snippets from their own initial states; compare with the recording.",
    ),
)


def analysis_of(config: Any) -> Analysis:
    """Return the analysis that a configuration belongs to."""
    return next(row for row in ANALYSES if row.config is type(config))
