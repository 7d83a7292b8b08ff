"""Rollouts beside the bare simulator: what acting and the way between processes cost."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from lwdctl.bench.comparisons import Comparison, compare
from lwdctl.core.errors import SimulatorError
from lwdctl.core.records import EnvSpec
from lwdctl.core.simulator_facts import METAWORLD_MAX_STEPS, OBSERVATION
from lwdctl.envs.table import make_simulator
from lwdctl.evaluation.environment import EnvironmentWorkers, RolloutSettings
from lwdctl.evaluation.rollout import Engine
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.policies.latent_source import SampledLatents
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.replanning import GeneratedNetworks, ReplanningPolicy

TASK = "reach"
ENV = EnvSpec("metaworld", (TASK,))
NUM_ENVS = 16
FIRST_SEED = 100_000
ROUNDS = 7
OBSERVATION_SIZE, ACTION_SIZE, LATENT_SIZE = 39, 4, 256


def rollouts(
    device: torch.device, rounds: int | None = None, *, steps: int = METAWORLD_MAX_STEPS
) -> Iterator[Comparison]:
    """Roll out an untrained policy, and step the same simulators with random actions.

    One process per core holds the simulators on either side, started before anything is timed. The
    policy plans once per episode, as in the recipe of ten Metaworld tasks.

    Args:
        device: Where the policy acts.
        rounds: Repetitions of both.
        steps: Steps of every episode.
    """
    workers = min(len(os.sched_getaffinity(0)), NUM_ENVS)
    plans = [EpisodePlan(index, FIRST_SEED + index, TASK) for index in range(NUM_ENVS)]
    settings = RolloutSettings(ENV, steps, perturbation=0.0, perturbation_probability=0.0)
    with ExitStack() as stack:
        environments = EnvironmentWorkers(settings, NUM_ENVS, workers, timeout=600.0)
        stack.callback(environments.close)
        engine = Engine(_policy(device), environments, NUM_ENVS)
        bare = _BareSimulators(workers, steps)
        stack.callback(bare.close)
        comparison = Comparison(
            f"rollouts, Metaworld, {NUM_ENVS} environments in {workers} processes, {device.type}",
            "LWD, generated policy of 2 x 256",
            "simulators alone, random actions",
            "rollouts/s",
            at_least=0.8,
        )

        def ours() -> None:
            lost = [item.error for item in engine.run(plans) if item.error]
            if lost:
                raise SimulatorError(lost[0])

        yield compare(comparison, ours, bare.run, rounds or ROUNDS, device, count=NUM_ENVS)


def _policy(device: torch.device) -> ReplanningPolicy:
    """Return an LWD policy for Metaworld with fresh weights, in the paper's sizes."""
    sizes = OBSERVATION_SIZE, ACTION_SIZE, None, METAWORLD_MAX_STEPS, LATENT_SIZE
    vae = PolicyVae(VaeSpec((OBSERVATION,), *sizes, (50, 50), (256, 256), time_input=True))
    denoiser = DenoiserSpec("mlp", LATENT_SIZE, OBSERVATION_SIZE, (16, 16), "m", 512, 3, 0.0)
    spec = DiffusionSpec(denoiser, "sample", 100, ("state",), OBSERVATION_SIZE, 0, 0)
    diffusion = LatentDiffusion(spec).to(device).eval()
    source = SampledLatents(diffusion, (TASK,), (), "ddim", 10, history=1)
    return ReplanningPolicy(GeneratedNetworks(vae.to(device).eval()), source, horizon=None)


class _BareSimulators:
    """Processes that step their simulators by themselves."""

    def __init__(self, processes: int, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connections: list[Connection[Any, Any]] = []
        self._processes = []
        for number in range(processes):
            ours, theirs = context.Pipe()
            indices = list(range(number, NUM_ENVS, processes))
            process = context.Process(target=_simulate, args=(theirs, indices, steps), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self) -> None:
        """Run one episode in every simulator."""
        for connection in self._connections:
            connection.send(None)
        for connection in self._connections:
            connection.recv()

    def close(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.close()
            process.join()


def _simulate(connection: Connection[Any, Any], indices: list[int], steps: int) -> None:
    """Run an episode of random actions in each environment whenever a message comes."""
    simulators = {index: make_simulator(ENV, TASK) for index in indices}
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, ACTION_SIZE)).astype(np.float32)
    try:
        while True:
            connection.recv()
            for index, simulator in simulators.items():
                simulator.reset(FIRST_SEED + index)
            for action in actions:
                for simulator in simulators.values():
                    simulator.step(action)
            connection.send(None)
    except EOFError:
        return
