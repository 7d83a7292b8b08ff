"""`analyze diversity`: are generated policies as varied as the demonstrations?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.config import option, to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.suggest import did_you_mean
from lwdctl.stages.eval_arms import CHAIN, SAMPLED, chain_read
from lwdctl.stages.lwd_policy import Chain, lwd_policy
from lwdctl.stages.stage import Stage, StageContext
from lwdctl.stages.traced_runs import (
    Outcome,
    Setting,
    lost,
    open_inputs,
    refuse_lost,
    trace,
    worker_count,
)

if TYPE_CHECKING:
    from lwdctl.analysis.diversity import Modes, Values
    from lwdctl.artifacts.snippets import SnippetStore

TITLE = "Diversity of behaviour"
FEWEST = 2

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AnalyzeDiversityConfig:
    """What to run and how to tell modes."""

    count: int = option(
        60, "Recorded starts to run from, of as many demonstrations of every label", minimum=4
    )
    draws: int = option(2, "Policies sampled from every start", minimum=1)
    latent: tuple[str, ...] = option(
        (SAMPLED, "encoded", "mean"),
        "Where LWD's latents come from: sampled by the model; encoded from the demonstration whose"
        " start it is; the mean of all",
        choices=(SAMPLED, "encoded", "mean"),
    )
    task: str = option("", "Task to look at, where the data has several")
    modes: int = option(
        0,
        "Modes to look for among demonstrations without labels; 0 takes the number with the best"
        " silhouette",
        minimum=0,
    )
    horizon: int | None = option(
        None,
        "Executed steps between two queries; 'episode' for one policy all episode (default: the"
        " snippet length the model was trained with)",
        minimum=0,
        words={"episode": 0},
    )
    max_steps: int = option(0, "Steps to look at; 0 takes the longest demonstration", minimum=0)
    sampler: str = option("ddim", "Denoising sampler", choices=("ddpm", "ddim", "dpm-solver"))
    denoise_steps: int = option(10, "Denoising steps per query", minimum=1)
    seed: int = option(0, "Seed of starts, of what is sampled, and of modes", minimum=0)
    slots: int = option(32, "Episodes stepped as one batch", minimum=1)
    workers: int = option(
        -1, "Simulator processes; 0 runs in this one, -1 one per core", minimum=-1
    )
    timeout: float = option(120.0, "Seconds to wait for a simulator before it counts as hung")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")


@dataclass(frozen=True)
class Demonstrations:
    """The recorded trajectories of one task.

    Attributes:
        task: Its name.
        episodes: (demonstration,) store index.
        category: (demonstration,) index of the label, None where behaviours have no names.
        states: (demonstration, time, obs) normalised and held.
    """

    task: str
    episodes: IntArray
    category: IntArray | None
    states: Values


def run(
    config: AnalyzeDiversityConfig, inputs: Mapping[str, Artifact], context: StageContext
) -> Artifact:
    """Run, compare and publish an `analysis` artifact.

    Raises:
        ConfigError: The data has no environment, no such task, or too few demonstrations.
        ArtifactError: A demonstration's start can be reached in no way.
        SimulatorError: Episodes were lost to simulator errors (after publishing what ran).
    """
    from lwdctl.analysis.diversity_sections import write
    from lwdctl.evaluation.snippet_starts import plan_snippets

    chain = open_inputs(inputs, config.device, config.denoise_steps)
    task, episodes, category = _episodes(chain.store, config.task)
    steps = config.max_steps or int(chain.store.episodes.length[episodes].max())
    demonstrations = Demonstrations(task, episodes, category, _recorded(chain, episodes, steps))
    modes = _modes(demonstrations, chain.store.spec.labels, config)
    chosen = _draw(demonstrations, config)
    leading = list(inputs.values())[-1]
    with context.workspace.begin(
        "analysis",
        context.name or leading.name,
        config=to_mapping(config),
        inputs=[leading],
    ) as draft:
        outcomes = {}
        for latent in dict.fromkeys(config.latent):
            context.progress.message(f"{latent}:")
            rows = np.repeat(chosen, config.draws) if latent == SAMPLED else chosen
            starts = plan_snippets(
                chain.store, episodes[rows], np.zeros_like(rows), steps, config.seed
            )
            policy = lwd_policy(
                latent, chain, _horizon(config, chain), config.sampler, config.denoise_steps
            )
            outcomes[latent] = trace(
                policy, chain, starts.plans, steps, _setting(config), context.progress
            )
        findings = _findings(demonstrations, chosen, modes, outcomes, chain, config)
        summary = write(findings, draft.path, f"{TITLE}: {leading.reference}")
        missing = lost(outcomes)
        if missing:
            summary["episodes_lost_to_simulators"] = missing
        artifact = draft.publish(summary, seed=config.seed, device=str(chain.device))
    refuse_lost(missing, artifact)
    return artifact


def _episodes(store: SnippetStore, wanted: str) -> tuple[str, IntArray, IntArray | None]:
    """Return the task, its demonstrations, and their labels where there are several."""
    tasks, table = store.spec.env.tasks, store.episodes
    if wanted and wanted not in tasks:
        raise ConfigError(f"'{wanted}' is no task of this data", did_you_mean(wanted, tasks))
    if not wanted and len(tasks) > 1:
        raise ConfigError(
            f"the data has {len(tasks)} tasks, and diversity is measured within one",
            f"choose one: --task {tasks[0]}",
        )
    task = wanted or tasks[0]
    mine = np.flatnonzero(np.asarray(table.task) == tasks.index(task))
    label = np.asarray(table.label)[mine]
    names, counts = np.unique(label[label >= 0], return_counts=True)
    if len(names) > 1 and counts.min() >= FEWEST:
        known = label >= 0
        return task, mine[known], label[known].astype(np.int64)
    if len(mine) < 2 * FEWEST:
        raise ConfigError(
            f"'{task}' has {len(mine)} demonstrations; modes need at least {2 * FEWEST}",
            "ingest more",
        )
    return task, mine, None


def _recorded(chain: Chain, episodes: IntArray, steps: int) -> Values:
    from lwdctl.analysis.diversity import hold

    store, keys = chain.store, chain.vae.spec.observation_keys
    rows = []
    for index in episodes.tolist():
        first = int(store.episodes.start[index])
        length = min(int(store.episodes.length[index]), steps + 1)
        states = store.features(keys, first, first + length)
        final = store.final_observation(index)
        if length <= steps and final is not None:
            last = np.concatenate([final[key] for key in keys])
            states = np.concatenate([states, last[None]])
        rows.append(hold(states, steps, _scale(chain)))
    return np.stack(rows)


def _scale(chain: Chain) -> Values:
    scale: Values = chain.vae.observation.scale.cpu().double().numpy()
    return scale


def _modes(
    demonstrations: Demonstrations, labels: tuple[str, ...], config: AnalyzeDiversityConfig
) -> Modes:
    from lwdctl.analysis.diversity import ClusteredModes, LabelledModes, features

    rows = features(demonstrations.states)
    if demonstrations.category is None:
        if config.modes == 1 or config.modes >= len(rows):
            raise ConfigError(
                f"{len(rows)} demonstrations cannot be told apart into {config.modes} modes",
                f"choose --modes from 2 to {len(rows) - 1}, or 0",
            )
        return ClusteredModes(rows, config.modes, config.seed)
    kept, category = np.unique(demonstrations.category, return_inverse=True)
    return LabelledModes(rows, category, [labels[index] for index in kept], config.seed)


def _draw(demonstrations: Demonstrations, config: AnalyzeDiversityConfig) -> IntArray:
    """Return which demonstrations to start from: as many of every label, then others."""
    from lwdctl.core.seeding import generator

    count = len(demonstrations.episodes)
    order = generator("diversity starts", config.seed).permutation(count)
    category = demonstrations.category
    if category is not None:
        turn = np.empty(count, dtype=np.int64)
        for one in np.unique(category):
            mine = order[category[order] == one]
            turn[mine] = np.arange(len(mine))
        order = order[np.argsort(turn[order], kind="stable")]
    return np.sort(order[: config.count])


def _horizon(config: AnalyzeDiversityConfig, chain: Chain) -> int:
    return chain.vae.spec.snippet_length if config.horizon is None else config.horizon


def _setting(config: AnalyzeDiversityConfig) -> Setting:
    return Setting(
        config.slots,
        worker_count(config.workers),
        config.timeout,
        config.sampler,
        config.denoise_steps,
    )


def _findings(
    demonstrations: Demonstrations,
    chosen: IntArray,
    modes: Modes,
    outcomes: Mapping[str, Outcome],
    chain: Chain,
    config: AnalyzeDiversityConfig,
) -> Any:
    from lwdctl.analysis.diversity import hold
    from lwdctl.analysis.diversity_sections import Findings, Group

    steps = demonstrations.states.shape[1] - 1
    groups = {}
    for name, outcome in outcomes.items():
        draws = config.draws if name == SAMPLED else 1
        states = np.full((len(chosen), draws, *demonstrations.states.shape[1:]), np.nan)
        success = np.zeros((len(chosen), draws), dtype=bool)
        for place, (reached, episode) in enumerate(
            zip(outcome.reached, outcome.episodes, strict=True)
        ):
            if reached is not None and len(reached):
                states[divmod(place, draws)] = hold(reached, steps, _scale(chain))
            success[divmod(place, draws)] = episode.success
        groups[name] = Group(states, success)
    return Findings(
        task=demonstrations.task,
        episodes=demonstrations.episodes[chosen],
        chosen=chosen,
        demonstrated=demonstrations.states[chosen],
        total=len(demonstrations.episodes),
        modes=modes,
        groups=groups,
        horizon=_horizon(config, chain),
        seed=config.seed,
    )


def kinds_read(config: AnalyzeDiversityConfig, named: Collection[str]) -> tuple[str, ...]:
    """Return the kinds that are read: the diffusion model only where it samples."""
    return chain_read(config.latent, named)


STAGE = Stage("analyze diversity", "analysis", AnalyzeDiversityConfig, CHAIN, run, reads=kinds_read)
"""The stage."""
