"""Episodes whose every observation is kept, run from recorded starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.configs import RolloutConfig
from lwdctl.core.errors import ConfigError, SimulatorError
from lwdctl.core.progress import Progress
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.evaluation.rollout import rollout
from lwdctl.policies.loading import load_vae
from lwdctl.policies.policy import BatchPolicy, EpisodePlan
from lwdctl.policies.traced import TracedPolicy
from lwdctl.stages.lwd_policy import Chain, check_inference_steps
from lwdctl.training.device import choose_device


@dataclass(frozen=True)
class Outcome:
    """One policy's episodes, in the order of the plans.

    Attributes:
        reached: Observations (time, obs) from the start on, None where the simulator was lost.
        episodes: What the engine says of them.
    """

    reached: Sequence[npt.NDArray[np.float32] | None]
    episodes: Sequence[EpisodeResult]


def open_inputs(inputs: Mapping[str, Artifact], config: RolloutConfig, *, samples: bool) -> Chain:
    """Open trained models and their data for runs in the data's environment.

    Args:
        inputs: Kind to artifact, snippets and VAE at least.
        config: How policies will run.
        samples: Whether the diffusion model will be asked.

    Raises:
        ConfigError: The data has no environment, or the model fewer denoising steps.
    """
    store = SnippetStore.open(inputs["snippets"].path)
    if not store.spec.env.adapter:
        raise ConfigError(
            "the data names no environment to run in", "ingest it again with --env ADAPTER/NAME"
        )
    if samples:
        check_inference_steps(inputs["diffusion"], config.num_inference_steps)
    place = choose_device(config.device)
    return Chain(inputs, store, load_vae(inputs["vae"], place), place)


def trace(
    policy: BatchPolicy,
    chain: Chain,
    plans: Sequence[EpisodePlan],
    steps: int,
    config: RolloutConfig,
    progress: Progress,
) -> Outcome:
    """Run one episode per plan and keep what it saw.

    Args:
        policy: Who acts.
        chain: Names the environment, and the observations to keep.
        plans: Indexed 0, 1, 2, ...
        steps: Actions whose outcomes are to be seen, at most.
        config: How to run.
        progress: Where to report.
    """
    traced = TracedPolicy(policy, chain.vae.spec.observation_keys)
    episodes = rollout(
        traced,
        chain.store.spec.env,
        plans,
        width=min(config.num_envs, len(plans)),
        workers=config.processes,
        max_steps=steps + 1,
        timeout=config.timeout,
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
