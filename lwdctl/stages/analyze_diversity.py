"""`analyze diversity`: are generated policies as varied as the demonstrations?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lwdctl.analysis.diversity import ClusteredModes, LabeledModes, Modes, Values, features, hold
from lwdctl.analysis.diversity_sections import Findings, Group, write
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import AnalyzeDiversityConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.seeding import generator
from lwdctl.core.suggest import did_you_mean
from lwdctl.evaluation.snippet_starts import plan_snippets, recorded_states
from lwdctl.models.files import load_spec
from lwdctl.stages.lwd_policy import SAMPLED, Chain, lwd_policy
from lwdctl.stages.stage import LOST, StageContext
from lwdctl.stages.traced_runs import Outcome, lost, open_inputs, refuse_lost, trace

TITLE = "Diversity of behavior"
FEWEST = 2

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Demonstrations:
    """The recorded trajectories of one task.

    Attributes:
        task: Its name.
        episodes: (demonstration,) store index.
        category: (demonstration,) index of the label, None where modes are not the labels.
        left_out: Demonstrations without a label that two have, where modes are the labels.
    """

    task: str
    episodes: IntArray
    category: IntArray | None
    left_out: int = 0


def run(
    config: AnalyzeDiversityConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Run, compare and publish an `analysis` artifact.

    Raises:
        ConfigError: The data has no environment, no such task, or too few demonstrations.
        ArtifactError: A demonstration's start can be reached in no way.
        SimulatorError: Episodes were lost to simulator errors (after publishing what ran).
    """
    chain = open_inputs(inputs, config, samples=SAMPLED in config.latent)
    demonstrations = find_demonstrations(chain.store, config)
    episodes = demonstrations.episodes
    lengths = chain.store.episodes.length[episodes]
    steps = config.max_steps or int(lengths.min())
    states = _recorded(chain, episodes, steps)
    modes = _modes(demonstrations, states, chain.store.spec.labels, config)
    chosen = draw_starts(demonstrations, chain.store, config)
    if len(chosen) < config.count:
        context.progress.message(f"{len(chosen)} starts: no more demonstrations to take them from")
    leading = list(inputs.values())[-1]
    with context.workspace.begin(
        "analysis",
        context.name or leading.name,
        config=to_mapping(config),
        inputs=[leading],
    ) as draft:
        outcomes: dict[str, Outcome] = {
            latent: _run(latent, chain, episodes[chosen], steps, config, context.progress)
            for latent in dict.fromkeys(config.latent)
        }
        findings = Findings(
            task=demonstrations.task,
            starts=f"{len(chosen)} demonstrations ({config.split} split)",
            episodes=episodes[chosen],
            chosen=chosen,
            demonstrated=states[chosen],
            components=_components(chain),
            ended=int((lengths[chosen] < steps).sum()),
            left_out=demonstrations.left_out,
            modes=modes,
            groups={
                name: Group(_reached(outcome, chain, steps, len(chosen)))
                for name, outcome in outcomes.items()
            },
            horizon=_horizon(config, chain),
            condition=_condition(inputs),
            seed=config.seed,
        )
        summary = write(findings, draft.path, f"{TITLE}: {leading.reference}")
        missing = lost(outcomes)
        if missing:
            summary[LOST] = missing
        artifact = draft.publish(summary, seed=config.seed, device=str(chain.device))
    refuse_lost(missing, artifact)
    return artifact


def find_demonstrations(store: SnippetStore, config: AnalyzeDiversityConfig) -> Demonstrations:
    """Find the demonstrations of the task, and whether modes are their labels.

    Raises:
        ConfigError: No such task, several to choose from, or too few demonstrations.
    """
    names, table = store.spec.env.tasks, store.episodes
    tasks = tuple(names[index] for index in np.unique(table.task))
    if config.task and config.task not in tasks:
        raise ConfigError(
            f"'{config.task}' is no task of this data", did_you_mean(config.task, tasks)
        )
    if not config.task and len(tasks) > 1:
        raise ConfigError(
            f"the data has {len(tasks)} tasks, and diversity is measured within one",
            f"choose one: --task {tasks[0]}",
        )
    task = config.task or tasks[0]
    mine = np.flatnonzero(np.asarray(table.task) == names.index(task))
    label = np.asarray(table.label)[mine].astype(np.int64)
    found, counts = np.unique(label[label >= 0], return_counts=True)
    usable = np.isin(label, found[counts >= FEWEST])
    if not config.modes and len(np.unique(label[usable])) > 1:
        return Demonstrations(task, mine[usable], label[usable], int((~usable).sum()))
    if len(mine) < 2 * FEWEST or config.modes == 1 or (config.modes or 0) >= len(mine):
        wanted = f"{config.modes} modes" if config.modes else "modes"
        raise ConfigError(
            f"{len(mine)} demonstrations of '{task}' cannot be told apart into {wanted}",
            f"--modes takes 2 to {len(mine) - 1}" if len(mine) >= 2 * FEWEST else "ingest more",
        )
    return Demonstrations(task, mine, None)


def draw_starts(
    demonstrations: Demonstrations, store: SnippetStore, config: AnalyzeDiversityConfig
) -> IntArray:
    """Draw whose starts to run from: (start,) indices among the demonstrations, in order.

    Raises:
        ConfigError: Fewer than two demonstrations in the split.
    """
    episodes, category = demonstrations.episodes, demonstrations.category
    order = generator("diversity starts", config.seed).permutation(len(episodes))
    if config.split != "all":
        order = order[np.isin(episodes[order], store.episodes.of_split(config.split))]
    if len(order) < FEWEST:
        raise ConfigError(
            f"the data has {len(order)} {config.split} demonstrations of '{demonstrations.task}'",
            "use --split all",
        )
    if category is not None:
        # By how much of its label came before: any part of the order has the labels' shares.
        turn = np.empty(len(episodes))
        for one in np.unique(category[order]):
            mine = order[category[order] == one]
            turn[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        order = order[np.argsort(turn[order], kind="stable")]
    return np.sort(order[: config.count])


def _recorded(chain: Chain, episodes: IntArray, steps: int) -> Values:
    keys = chain.vae.spec.observation_keys
    rows = recorded_states(chain.store, episodes, np.zeros_like(episodes), keys, steps)
    return np.stack([hold(row[~np.isnan(row[:, 0])], steps, _scale(chain)) for row in rows])


def _scale(chain: Chain) -> Values:
    scale: Values = chain.vae.observation.scale.cpu().double().numpy()
    return scale


def _modes(
    demonstrations: Demonstrations,
    states: Values,
    labels: tuple[str, ...],
    config: AnalyzeDiversityConfig,
) -> Modes:
    rows = features(states)
    if demonstrations.category is None:
        return ClusteredModes(rows, config.modes or 0, config.seed)
    kept, category = np.unique(demonstrations.category, return_inverse=True)
    return LabeledModes(rows, category, [labels[index] for index in kept], config.seed)


def _run(
    latent: str,
    chain: Chain,
    episodes: IntArray,
    steps: int,
    config: AnalyzeDiversityConfig,
    progress: Progress,
) -> Outcome:
    """Run policies from the starts of demonstrations, the draws of one start side by side."""
    progress.message(f"{latent}:")
    rows = np.repeat(episodes, config.draws) if latent == SAMPLED else episodes
    starts = plan_snippets(chain.store, rows, np.zeros_like(rows), steps, config.seed)
    policy = lwd_policy(
        latent, chain, _horizon(config, chain), config.sampler, config.num_inference_steps
    )
    return trace(policy, chain, starts.plans, steps, config, progress)


def _horizon(config: AnalyzeDiversityConfig, chain: Chain) -> int:
    if config.horizon is None:
        return chain.vae.spec.snippet_length
    return 0 if config.horizon == "episode" else config.horizon


def _components(chain: Chain) -> tuple[str, ...]:
    """Return what the components of an observation are called (obs,)."""
    keys = chain.vae.spec.observation_keys
    sizes = chain.store.spec.sizes(keys)
    return tuple(
        f"{key}[{place}]" if size > 1 else key
        for key, size in zip(keys, sizes, strict=True)
        for place in range(size)
    )


def _condition(inputs: Mapping[str, Artifact]) -> tuple[str, ...]:
    """Return what the diffusion model is told."""
    if "diffusion" not in inputs:
        return ()
    return tuple(load_spec(inputs["diffusion"].path)["condition"])


def _reached(outcome: Outcome, chain: Chain, steps: int, starts: int) -> Values:
    """Return (start, draw, time, obs) normalized and held, NaN where the simulator was lost."""
    size = sum(chain.store.spec.sizes(chain.vae.spec.observation_keys))
    rows = np.full((len(outcome.reached), steps + 1, size), np.nan)
    for row, seen in zip(rows, outcome.reached, strict=True):
        if seen is not None and len(seen):
            row[:] = hold(seen, steps, _scale(chain))
    return rows.reshape(starts, -1, steps + 1, size)
