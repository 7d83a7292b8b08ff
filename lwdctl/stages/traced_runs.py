"""Episodes whose every observation is kept, run from recorded starts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.artifact import Artifact
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.stages.lwd_policy import Chain

if TYPE_CHECKING:
    from lwdctl.core.progress import Progress
    from lwdctl.evaluation.rollout import EpisodeResult
    from lwdctl.policies.policy import EpisodePlan, Policy


@dataclass(frozen=True)
class Setting:
    """What every run shares.

    Attributes:
        slots: Episodes stepped as one batch.
        workers: Simulator processes, 0 for none.
        timeout: Seconds to wait for one of them.
        sampler: Denoising sampler of `sampled`.
        denoise_steps: Denoising steps of `sampled`.
    """

    slots: int
    workers: int
    timeout: float
    sampler: str
    denoise_steps: int

    @classmethod
    def of(cls, config: Any) -> Setting:
        """Take from a stage's configuration what it calls by the same names."""
        workers = worker_count(config.workers)
        return cls(config.slots, workers, config.timeout, config.sampler, config.denoise_steps)


@dataclass(frozen=True)
class Outcome:
    """One policy's episodes, in the order of the plans.

    Attributes:
        reached: Observations (time, obs) from the start on, None where the simulator was lost.
        episodes: What the engine says of them.
    """

    reached: Sequence[npt.NDArray[np.float32] | None]
    episodes: Sequence[EpisodeResult]


def open_inputs(inputs: Mapping[str, Artifact], device: str, denoise_steps: int) -> Chain:
    """Open trained models and their data for runs in the data's environment.

    Args:
        inputs: Kind to artifact, snippets and VAE at least.
        device: `"auto"`, `"cpu"`, `"cuda"` or `"cuda:N"`.
        denoise_steps: What the diffusion model is asked for; 0 where nothing is sampled.

    Raises:
        ConfigError: The data has no environment, or the model fewer denoising steps.
    """
    from lwdctl.artifacts.snippets import SnippetStore
    from lwdctl.models.files import load_spec
    from lwdctl.policies.loading import load_vae
    from lwdctl.training.device import choose_device

    store = SnippetStore.open(inputs["snippets"].path)
    if not store.spec.env.adapter:
        raise ConfigError(
            "the data names no environment to run in", "ingest it again with --env ADAPTER/NAME"
        )
    if denoise_steps:
        trained = load_spec(inputs["diffusion"].path)["train_steps"]
        if denoise_steps > trained:
            raise ConfigError(
                f"the model was trained with {trained} denoising steps, {denoise_steps} are too"
                " many"
            )
    place = choose_device(device)
    return Chain(inputs, store, load_vae(inputs["vae"], place), place)


def worker_count(workers: int) -> int:
    """Return how many simulator processes a setting stands for: -1 is one per core."""
    return workers if workers >= 0 else len(os.sched_getaffinity(0))


def trace(
    policy: Policy,
    chain: Chain,
    plans: Sequence[EpisodePlan],
    steps: int,
    setting: Setting,
    progress: Progress,
) -> Outcome:
    """Run one episode per plan and keep what it saw.

    Args:
        policy: Who acts.
        chain: Names the environment, and the observations to keep.
        plans: Indexed 0, 1, 2, ...
        steps: Actions whose outcomes are to be seen, at most.
        setting: How to run.
        progress: Where to report.
    """
    from lwdctl.evaluation.rollout import rollout
    from lwdctl.policies.traced import TracedPolicy

    traced = TracedPolicy(policy, chain.vae.spec.observation_keys)
    episodes = rollout(
        traced,
        chain.store.spec.env,
        plans,
        width=min(setting.slots, len(plans)),
        workers=setting.workers,
        max_steps=steps + 1,
        timeout=setting.timeout,
        progress=progress,
    ).episodes
    reached = [
        None if one.error else traced.observations(one.plan.index)[: steps + 1] for one in episodes
    ]
    return Outcome(reached, episodes)


def lost(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """Return how many episodes of each arm the simulator was lost in, where any were."""
    counts = {
        name: sum(bool(one.error) for one in item.episodes) for name, item in outcomes.items()
    }
    return {name: count for name, count in counts.items() if count}


def refuse_lost(missing: Mapping[str, int], artifact: Artifact) -> None:
    """Raise where episodes were lost, once everything else is published.

    Raises:
        SimulatorError: Some were.
    """
    if missing:
        raise SimulatorError(
            f"{sum(missing.values())} episodes were lost to simulator errors; see {artifact.path}",
            "run the analysis again",
        )
