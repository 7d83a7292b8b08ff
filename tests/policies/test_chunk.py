"""Chunk policies: open-loop order, receding execution, history, independence of neighbors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from lwdctl.methods.chunks import inpainting_weights
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.policies.latent_source import LatentSource, ReplanRequest, SampledLatents
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.replanning import ActionChunks, ReplanningPolicy

LENGTH, ACTION, OBS, HISTORY, HORIZON = 8, 2, 3, 2, 6


def spec_of(latent: int, *, relative: bool = False) -> ChunkSpec:
    denoiser = DenoiserSpec("mlp", latent, HISTORY * OBS + 2, (1, latent), "xs", 32, 1, 0.0)
    diffusion = DiffusionSpec(
        denoiser, "sample", 20, ("state", "task"), HISTORY * OBS, 2, 0, clip=1.0
    )
    start = 1 if relative else None
    return ChunkSpec(("a", "b"), OBS, ACTION, start, HISTORY, HORIZON, diffusion)


@dataclass
class Counting(LatentSource):
    """Chunks whose action at step `t` of re-plan `n` is 100 n + t, and a list of every request."""

    history: int = HISTORY
    denoises: bool = True
    asked: list[ReplanRequest] = field(default_factory=list)

    def latents(self, query: ReplanRequest) -> Tensor:
        self.asked.append(
            ReplanRequest(
                query.plans,
                query.numbers.copy(),
                query.steps.copy(),
                query.state.clone(),
                query.due,
                query.previous,
            )
        )
        first = torch.from_numpy(query.numbers).float()[:, None, None] * 100
        chunk = first + torch.arange(LENGTH)[:, None].expand(-1, ACTION)
        return chunk.flatten(1)


def plans(count: int) -> list[EpisodePlan | None]:
    return [EpisodePlan(i, 100_000 + i, "t") for i in range(count)]


def observe(step: float, count: int) -> dict[str, np.ndarray]:
    rows = np.arange(count, dtype=np.float32)[:, None] + step
    return {"b": -rows, "a": np.concatenate([rows, 2 * rows], 1)}


def chunk_policy(
    model: ActionDiffusion | LatentChunks, source: LatentSource, horizon: int
) -> ReplanningPolicy:
    return ReplanningPolicy(ActionChunks(model, horizon), source, horizon)


def roll(policy: ReplanningPolicy, steps: int, count: int = 1) -> np.ndarray:
    policy.reset(plans(count))
    active = np.ones(count, dtype=bool)
    return np.stack([policy.act(observe(step, count), active) for step in range(steps)])


def test_a_whole_chunk_runs_open_loop_from_the_current_step_on() -> None:
    source = Counting()
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), source, HORIZON)
    actions = roll(policy, 8)[:, 0, 0]
    # The chunk begins at the oldest of two observations: its first step is in the past.
    assert actions.tolist() == [1, 2, 3, 4, 5, 6, 101, 102]
    assert policy.cost().num_replans.tolist() == [2]
    assert policy.cost().num_plans.tolist() == [2]


def test_receding_execution_runs_fewer_steps_than_predicted() -> None:
    source = Counting()
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), source, 2)
    assert roll(policy, 5)[:, 0, 0].tolist() == [1, 2, 101, 102, 201]
    assert [query.steps.tolist() for query in source.asked] == [[0], [2], [4]]


@pytest.mark.parametrize("horizon", [0, HORIZON + 1])
def test_a_horizon_beyond_the_chunk_is_refused(horizon: int) -> None:
    with pytest.raises(ValueError, match="horizon"):
        chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), Counting(), horizon)


def test_history_is_oldest_first_and_starts_with_repeats() -> None:
    source = Counting()
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), source, 3)
    roll(policy, 4)
    assert source.asked[0].state.tolist() == [[0, 0, 0, 0, 0, 0]]
    assert source.asked[1].state.tolist() == [[2, 4, -2, 3, 6, -3]]
    policy.reset(plans(1))
    policy.act(observe(9, 1), np.ones(1, dtype=bool))
    assert source.asked[2].state.tolist() == [[9, 18, -9, 9, 18, -9]]


def test_relative_chunks_start_from_the_current_observation() -> None:
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION, relative=True)), Counting(), 3)
    actions = roll(policy, 5)
    # The reference stays what it was at the re-plan: components 1 and 2 of the observation.
    assert actions[2, 0].tolist() == [3.0, 3.0]
    assert actions[4, 0].tolist() == [102.0 + 6.0, 102.0 - 3.0]


def test_inactive_environments_are_not_replanned() -> None:
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), Counting(), 2)
    policy.reset([*plans(1), None])
    for step in range(12):
        actions = policy.act(observe(step, 2), np.array([True, False]))
        assert np.isfinite(actions).all()
    assert policy.cost().num_replans.tolist() == [6, 0]


@pytest.mark.parametrize(
    ("horizon", "moved"), [(2, [2, 3, 4, 5, 6, 7, 7, 7]), (6, [6, 7, 7, 7, 7, 7, 7, 7])]
)
def test_the_previous_chunk_moves_on_by_the_executed_steps(horizon: int, moved: list[int]) -> None:
    source = Counting()
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION)), source, horizon)
    roll(policy, 2 * horizon + 1)
    previous = [query.previous.view(LENGTH, ACTION) for query in source.asked[1:]]
    assert previous[0][:, 0].tolist() == previous[0][:, 1].tolist() == moved
    assert previous[1][:, 0].tolist() == [100 + step for step in moved]


def test_a_previous_chunk_of_relative_actions_aims_where_it_aimed() -> None:
    source = Counting()
    policy = chunk_policy(ActionDiffusion(spec_of(LENGTH * ACTION, relative=True)), source, 3)
    roll(policy, 7)
    moved = np.array([3, 4, 5, 6, 7, 7, 7, 7])
    # Three steps on, components 1 and 2 of the observation have changed by 6 and -3.
    previous = source.asked[1].previous.view(LENGTH, ACTION).numpy()
    np.testing.assert_allclose(previous, np.stack([moved - 6, moved + 3], 1))
    previous = source.asked[2].previous.view(LENGTH, ACTION).numpy()
    np.testing.assert_allclose(previous, np.stack([moved + 94, moved + 103], 1))


def test_a_previous_latent_stands_for_itself() -> None:
    source = Counting()
    policy = chunk_policy(LatentChunks(spec_of(LENGTH * ACTION)), source, 2)
    policy.reset([*plans(1), None])
    for step in range(5):
        policy.act(observe(step, 2), np.array([True, False]))
    assert [query.due.tolist() for query in source.asked] == [[True, False]] * 3
    expected = torch.arange(LENGTH).repeat_interleave(ACTION).float()
    assert torch.equal(source.asked[1].previous[0], expected)
    assert torch.equal(source.asked[2].previous[0], expected + 100)


@pytest.mark.parametrize("warm_start", [0.0, 0.6])
@pytest.mark.parametrize("method", [ActionDiffusion, LatentChunks])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_actions_of_an_environment_do_not_depend_on_its_neighbors(
    method: type, sampler: str, warm_start: float
) -> None:
    torch.manual_seed(1)
    model = method(spec_of(LENGTH * ACTION)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)

    def run(neighbor: EpisodePlan | None, value: float) -> list[np.ndarray]:
        source = SampledLatents(
            model.diffusion, ("t", "u"), (), sampler, 5, HISTORY, warm_start=warm_start
        )
        policy = chunk_policy(model, source, 2)
        policy.reset([plans(1)[0], neighbor])
        found = []
        for step in range(5):
            seen = observe(step, 2)
            for rows in seen.values():
                rows[1] = value
            found.append(policy.act(seen, np.array([True, neighbor is not None]))[0])
        return found

    alone, beside = run(None, 7.0), run(EpisodePlan(1, 123_456, "u"), 0.5)
    assert all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert not np.array_equal(alone[0], alone[2])
    source = SampledLatents(model.diffusion, ("t", "u"), (), sampler, 5, HISTORY)
    policy = chunk_policy(model, source, 2)
    policy.reset([replace(plans(1)[0], seed=100_777), None])
    other = policy.act(observe(0, 2), np.array([True, False]))[0]
    assert not np.array_equal(alone[0], other)


def test_the_weights_of_inpainting_fall_to_zero_where_the_previous_chunk_ends() -> None:
    weights = inpainting_weights(spec_of(LENGTH * ACTION), 2).view(LENGTH, ACTION)
    assert torch.equal(weights[:, 0], weights[:, 1])
    # Eight predicted steps of which the first was executed; four of six are left of the last plan.
    falling = [c * np.expm1(c) / np.expm1(1) for c in (4 / 5, 3 / 5, 2 / 5, 1 / 5)]
    np.testing.assert_allclose(weights[:, 0], [1, *falling, 0, 0, 0], rtol=1e-6)
    assert not inpainting_weights(spec_of(LENGTH * ACTION), HORIZON)[ACTION:].any()


class _StandardNormal(torch.nn.Module):
    """The best denoiser of independent standard normal components."""

    def __init__(self, model: LatentDiffusion) -> None:
        super().__init__()
        self.signal = model.signal

    def forward(self, latent: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        return self.signal[step].unsqueeze(1) * latent


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_an_inpainted_chunk_keeps_to_what_is_left_of_the_previous_one(
    sampler: str, relative: bool
) -> None:
    torch.manual_seed(1)
    spec = spec_of(LENGTH * ACTION, relative=relative)
    if relative:  # clipping would cut off what the observed motion adds
        spec = replace(spec, diffusion=replace(spec.diffusion, clip=0.0))
    model = ActionDiffusion(spec).eval()
    model.diffusion.denoiser = _StandardNormal(model.diffusion)

    def run(kept: torch.Tensor | None) -> np.ndarray:
        source = SampledLatents(model.diffusion, ("t", "u"), (), sampler, 10, HISTORY, kept=kept)
        return roll(chunk_policy(model, source, 2), 6, count=2)

    free, nothing = run(None), run(torch.zeros(LENGTH * ACTION))
    np.testing.assert_allclose(nothing, free, rtol=1e-5, atol=1e-5)
    kept = run(torch.ones(LENGTH * ACTION))
    assert np.array_equal(kept[:2], free[:2])  # there is no previous chunk yet
    whole = roll(chunk_policy(model, SampledLatents(
        model.diffusion, ("t", "u"), (), sampler, 10, HISTORY), HORIZON), 6, count=2)  # fmt: skip
    apart, kept_apart = np.abs(free[2:] - whole[2:]).mean(), np.abs(kept[2:] - whole[2:]).mean()
    assert kept_apart < 0.15 * apart
    half = run(torch.full((LENGTH * ACTION,), 0.2))
    assert 1.5 * kept_apart < np.abs(half[2:] - whole[2:]).mean() < 0.8 * apart


def test_the_ensemble_is_the_weighted_mean_of_all_chunks_that_reach_a_step() -> None:
    """Against the definition: every chunk is kept, and its weight is exp(-m i), oldest first."""
    rng = np.random.default_rng(0)
    horizon, rate, envs, length = 2, 0.3, 3, 5
    drawn = rng.normal(size=(6, envs, length, 2)).astype(np.float32)

    class Model:
        spec = SimpleNamespace(
            horizon=length, action_size=2, history=1, observation_size=1, latent_size=1,
            observation_keys=("a",),
        )  # fmt: skip
        diffusion = SimpleNamespace(latent=SimpleNamespace(mean=torch.zeros(1)))
        calls = 0

        def actions(self, latents: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.from_numpy(drawn[self.calls - 1])

    plans = ActionChunks(Model(), horizon, rate)
    plans.reset(envs)
    begun = np.zeros((6, envs), dtype=int)
    known: list[list[int]] = [[] for _ in range(envs)]
    # The last environment begins two steps later, as after a restart.
    for step in range(10):
        due = np.array([step % horizon == 0] * 2 + [step >= 2 and step % horizon == 0])
        if due.any():
            number = plans._model.calls
            for env in np.flatnonzero(due):
                known[env].append(number)
                begun[number, env] = step
            plans.replace(torch.zeros(envs, 1), torch.zeros(envs, 1), due)
        age = np.full(envs, step % horizon)
        found = plans.act(np.zeros((envs, 1), np.float32), age, slice(0, envs))
        for env in range(envs):
            covering = [n for n in known[env] if step - begun[n, env] < length]
            if covering:
                weights = np.exp(-rate * np.arange(len(covering)))
                values = [drawn[n, env, step - begun[n, env]] for n in covering]
                expected = np.average(values, axis=0, weights=weights)
                np.testing.assert_allclose(found[env], expected, rtol=1e-5)
