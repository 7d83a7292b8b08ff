"""Episodes that keep every observation, run from recorded initial states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lwdctl.configs import RolloutConfig
from lwdctl.core.errors import ConfigError
from lwdctl.core.progress import Progress
from lwdctl.core.records import EnvSpec, FloatArray
from lwdctl.evaluation import rollout as engine
from lwdctl.evaluation.checks import NAME_ENVIRONMENT
from lwdctl.evaluation.episodes import EpisodeResult
from lwdctl.policies.latent_source import LatentSource, ReplanRequest
from lwdctl.policies.policy import BatchPolicy, EpisodePlan, PolicyCost, acts_in_parts

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TracedEpisodes:
    """One policy's episodes, in the order of the plans.

    Attributes:
        observations: Per episode (time, obs) from the initial state on, None where it was lost
            to a simulator error.
        results: The outcome of every episode.
        score: Name of the metric that is the environment's score.
    """

    observations: Sequence[FloatArray | None]
    results: Sequence[EpisodeResult]
    score: str = ""

    def padded(self, steps: int) -> Values:
        """Return (episode, steps + 1, obs) as `pad` gives them; NaN where an episode was lost."""
        sizes = [states.shape[1] for states in self.observations if states is not None]
        found = np.full((len(self.observations), steps + 1, max(sizes, default=1)), np.nan)
        for row, states in zip(found, self.observations, strict=True):
            if states is not None and len(states):
                row[:] = pad(states, steps)
        return found


class TracingPolicy:
    """Acts as another policy does and keeps the observations of every episode.

    The engine shows a policy every observation but the last. To record the outcomes of `n` actions,
    an episode runs for `n + 1` steps; what an earlier end showed, its result holds.

    Args:
        policy: The policy that acts.
        keys: Observation keys to keep, concatenated.
    """

    def __init__(self, policy: BatchPolicy, keys: Sequence[str]) -> None:
        self._policy, self._keys = policy, keys
        self._plans: Sequence[EpisodePlan | None] = ()
        self._seen: dict[int, list[FloatArray]] = {}

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; what an earlier run of an episode saw is dropped."""
        self._plans = episodes
        self._seen.update({plan.index: [] for plan in episodes if plan is not None})
        self._policy.reset(episodes)

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return the other policy's actions (env, action)."""
        rows = np.concatenate([observations[key] for key in self._keys], axis=1)
        for env_index in np.flatnonzero(active).tolist():
            plan = self._plans[env_index]
            assert plan is not None  # an idle environment is not active
            self._seen[plan.index].append(rows[env_index].copy())
        return self._policy.act(observations, active)

    def acts_in_parts(self, running: npt.NDArray[np.bool_]) -> bool:
        """Return what holds for the other policy."""
        return acts_in_parts(self._policy, running)

    def cost(self) -> PolicyCost:
        """Return the other policy's cost."""
        return self._policy.cost()

    def observations(self, index: int) -> FloatArray:
        """Return what an episode showed before each action (time, obs), by its plan's index."""
        rows = self._seen.get(index)
        return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)


class RecordedActions:
    """Replays one recorded sequence of actions per episode, in open loop.

    Args:
        actions: (plan, time, action) by the plans' indices, environment units; past its end a
            sequence repeats its last action.
    """

    def __init__(self, actions: FloatArray) -> None:
        self._actions = actions
        self._rows: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._step = 0

    def reset(self, episodes: Sequence[EpisodePlan | None]) -> None:
        """Start one episode per environment; None leaves the environment idle."""
        self._rows = np.array([plan.index if plan else 0 for plan in episodes], dtype=np.int64)
        self._step = 0

    def act(
        self, observations: Mapping[str, FloatArray], active: npt.NDArray[np.bool_]
    ) -> FloatArray:
        """Return the next actions (env, action)."""
        del observations, active
        step = min(self._step, self._actions.shape[1] - 1)
        self._step += 1
        actions: FloatArray = self._actions[self._rows, step]
        return actions

    def cost(self) -> PolicyCost:
        """Return a cost of zero."""
        return PolicyCost(np.zeros(len(self._rows), dtype=np.int64))


@dataclass
class GivenLatents(LatentSource):
    """Latents (plan, latent) by the plans' indices, independent of observations."""

    rows: Tensor

    def latents(self, request: ReplanRequest) -> Tensor:
        """Return the latent of every environment's plan."""
        chosen = torch.tensor([plan.index if plan else 0 for plan in request.plans])
        return self.rows[chosen.to(self.rows.device)]


def pad(states: FloatArray | Values, steps: int) -> Values:
    """Return states (steps + 1, obs) of (time, obs); an early end is padded with the last state."""
    rows = np.minimum(np.arange(steps + 1), len(states) - 1)
    padded: Values = states[rows].astype(np.float64)
    return padded


def check_environment(env: EnvSpec) -> None:
    """Check that data names an environment to run policies in.

    Raises:
        ConfigError: It names none.
    """
    if not env.adapter:
        raise ConfigError(
            "the data names no environment to run policies in",
            NAME_ENVIRONMENT,
        )


def check_guidance(config: RolloutConfig, *, samples: bool) -> None:
    """Check that there is something to guide.

    Raises:
        ConfigError: No latents are sampled.
    """
    if config.guidance != 1 and not samples:
        raise ConfigError(
            "guidance changes how latents are sampled, and none are here",
            "leave --guidance out, or add sampled to --latent",
        )


def trace(
    policy: BatchPolicy,
    env: EnvSpec,
    keys: Sequence[str],
    plans: Sequence[EpisodePlan],
    steps: int,
    config: RolloutConfig,
    progress: Progress,
) -> TracedEpisodes:
    """Run one episode per plan and keep its observations.

    Args:
        policy: The policy that acts.
        env: The environment.
        keys: Observation keys to keep, concatenated.
        plans: Indexed 0, 1, 2, ...
        steps: Largest number of actions whose outcomes are recorded.
        config: How to run.
        progress: Where to report.
    """
    tracing = TracingPolicy(policy, keys)
    result = engine.rollout(
        tracing,
        env,
        plans,
        num_envs=min(config.num_envs, len(plans)),
        workers=config.processes,
        max_steps=steps + 1,
        timeout=config.timeout,
        progress=progress,
    )

    def observed(one: EpisodeResult) -> FloatArray | None:
        seen = tracing.observations(one.plan.index)
        if one.error or one.last is None or len(seen) > steps:
            return None if one.error else seen[: steps + 1]
        return np.concatenate([seen, np.concatenate([one.last[key] for key in keys])[None]])

    observations = [observed(one) for one in result.episodes]
    return TracedEpisodes(observations, result.episodes, result.score)


def count_lost(episodes: Mapping[str, Sequence[EpisodeResult]]) -> dict[str, int]:
    """Return group to the number of episodes lost to simulator errors, where there are any."""
    lost = {name: sum(bool(one.error) for one in group) for name, group in episodes.items()}
    return {name: count for name, count in lost.items() if count}
