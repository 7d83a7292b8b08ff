"""`analyze reconstruction`: encode a snippet, decode it, run it from the snippet's own start."""

from __future__ import annotations

from collections.abc import Mapping

from lwdctl.analysis.reconstruction import Errors, squared_errors
from lwdctl.analysis.reconstruction_sections import Findings, write
from lwdctl.artifacts.artifact import Artifact
from lwdctl.configs import AnalyzeReconstructionConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.data.batches import SnippetBatches
from lwdctl.data.windows import WindowRule
from lwdctl.envs.table import SIMULATORS
from lwdctl.evaluation.snippet_starts import draw_snippets, plan_snippets
from lwdctl.models.vae import PolicyVae
from lwdctl.stages.lwd_policy import SAMPLED, Chain
from lwdctl.stages.reconstruction_runs import RECORDED, SnippetRuns
from lwdctl.stages.stage import LOST, StageContext
from lwdctl.stages.traced_runs import Outcome, lost, open_inputs, refuse_lost
from lwdctl.training import checkpoint

TITLE = "Reconstruction of recorded snippets"


def run(
    config: AnalyzeReconstructionConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Reconstruct and publish an `analysis` artifact.

    Raises:
        ConfigError: The data has no environment, or no demonstration in the split.
        ArtifactError: A snippet's start can be reached in no way.
        SimulatorError: Episodes were lost to simulator errors (after publishing what ran).
    """
    runs = _open(config, inputs, context)
    arms = (RECORDED, *dict.fromkeys(config.latent))
    leading = list(inputs.values())[-1]
    with context.workspace.begin(
        "analysis",
        context.name or leading.name,
        config=to_mapping(config),
        inputs=[leading],
    ) as draft:
        outcomes = {arm: runs.run(arm) for arm in arms}
        earlier = _snapshots(runs, inputs["vae"])
        findings = Findings(
            runs.starts,
            {name: _errors(runs, outcome) for name, outcome in outcomes.items()},
            {name: outcome.episodes for name, outcome in outcomes.items()},
            _score(runs),
            {update: _errors(runs, outcome) for update, outcome in earlier.items()},
        )
        summary = write(findings, draft.path, f"{TITLE}: {inputs['vae'].reference}", config.split)
        missing = lost(outcomes | {f"after {n} updates": one for n, one in earlier.items()})
        if missing:
            summary[LOST] = missing
        artifact = draft.publish(summary, seed=config.seed, device=str(runs.chain.device))
    refuse_lost(missing, artifact)
    return artifact


def _open(
    config: AnalyzeReconstructionConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> SnippetRuns:
    chain = open_inputs(inputs, config, samples=SAMPLED in config.latent)
    store = chain.store
    if config.split != "all" and not len(store.episodes.of_split(config.split)):
        raise ConfigError(f"the data has no {config.split} demonstrations", "use --split all")
    training = _batches(chain)
    batches = training.of_split(config.split)
    episodes, offsets = draw_snippets(batches, store, config.count, config.seed)
    length = chain.vae.spec.snippet_length
    starts = plan_snippets(store, episodes, offsets, length, config.seed)
    return SnippetRuns(chain, batches, training, starts, config, context.progress)


def _batches(chain: Chain) -> SnippetBatches:
    spec = chain.vae.spec
    return SnippetBatches(
        chain.store,
        spec.observation_keys,
        WindowRule(*spec.window),
        split="train",
        seed=0,
        device=chain.device,
    )


def _errors(runs: SnippetRuns, outcome: Outcome) -> Errors:
    return squared_errors(outcome.reached, runs.recorded, runs.starts.valid, runs.scale)


def _score(runs: SnippetRuns) -> str:
    name: str = SIMULATORS.load(runs.chain.store.spec.env.adapter).metrics[0].name
    return name


def _snapshots(runs: SnippetRuns, vae: Artifact) -> dict[int, Outcome]:
    """Run encoded snippets with the weights of every update that were kept."""
    found = {}
    for update in checkpoint.snapshot_updates(vae.path):
        model = PolicyVae(runs.chain.vae.spec)
        checkpoint.load_snapshot(model, vae.path, update)
        model = model.to(runs.chain.device).eval()
        found[update] = runs.decoded(model, runs.encoded(model), f"after {update} updates")
    return found
