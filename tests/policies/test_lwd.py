"""The LWD policy: re-planning, time input, history, independence of neighboring environments."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from lwdctl.core.errors import ConfigError
from lwdctl.models import generated
from lwdctl.models.denoiser import DenoiserSpec
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.policies.latent_source import (
    LatentSource,
    MeanLatents,
    NearestLatents,
    OracleLatents,
    RecordedLatents,
    ReplanRequest,
    SampledLatents,
)
from lwdctl.policies.policy import EpisodePlan
from lwdctl.policies.replanning import GeneratedNetworks, RecordedPaths, ReplanningPolicy

EVERYONE = np.ones(2, dtype=bool)
SPEC = VaeSpec(("a", "b"), 3, 2, None, 4, 8, (10,), (16,), True)


@dataclass
class Counting(LatentSource):
    """Latents that are the number of the re-plan, and a list of every request."""

    history: int = 1
    denoises: bool = True
    asked: list[ReplanRequest] = field(default_factory=list)

    def latents(self, query: ReplanRequest) -> Tensor:
        copied = ReplanRequest(
            query.plans, query.numbers.copy(), query.steps.copy(), query.state,
            query.due, query.previous,
        )  # fmt: skip
        self.asked.append(copied)
        return torch.from_numpy(query.numbers).float().unsqueeze(1).expand(-1, 8)


def network_policy(vae: PolicyVae, source: LatentSource, horizon: int | None) -> ReplanningPolicy:
    return ReplanningPolicy(GeneratedNetworks(vae), source, horizon)


def plans(count: int) -> list[EpisodePlan | None]:
    return [EpisodePlan(i, 100_000 + i, "t") for i in range(count)]


def observe(step: float, count: int) -> dict[str, np.ndarray]:
    rows = np.arange(count, dtype=np.float32)[:, None] + step
    return {"b": -rows, "a": np.concatenate([rows, 2 * rows], 1)}


def test_replans_every_horizon_steps_and_gives_the_time_input() -> None:
    torch.manual_seed(0)
    vae = PolicyVae(SPEC)
    source = Counting()
    policy = network_policy(vae, source, horizon=3)
    policy.reset(plans(2))
    active = np.ones(2, dtype=bool)
    actions = [policy.act(observe(step, 2), active) for step in range(7)]
    assert [query.steps.tolist() for query in source.asked] == [[0, 0], [3, 3], [6, 6]]
    assert policy.cost().num_replans.tolist() == [3, 3]
    # Step 4 is step 1 of the second policy: same network, phase 1 of 4.
    weights = vae.decoder(torch.ones(2, 8))
    state = torch.tensor([[4.0, 8.0, -4.0], [5.0, 10.0, -5.0]])
    layers = generated.unpack(weights, SPEC.policy_shape)
    expected = vae.act(layers, state, torch.full((2,), 0.25)).detach().numpy()
    np.testing.assert_allclose(actions[4], expected, rtol=1e-5)


def test_replans_early_where_the_motion_has_left_the_nearest_recorded_snippet() -> None:
    """The latents are 0, 1, 2, ...; the second environment keeps to its first recorded snippet."""
    recorded = np.zeros((3, 4, 3), dtype=np.float32)
    recorded[1], recorded[2] = 5, np.arange(4)[:, None]
    asked = []

    def observed(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return recorded[rows]

    latents = torch.tensor([[0.2], [1.0], [1.9]]).repeat(1, 8)
    std, scale = torch.full((8,), 0.5), np.array([1, 1, 10], dtype=np.float32)
    paths = RecordedPaths(latents / std, std, observed, scale, beyond=1.0, after=2)
    source = Counting()
    policy = ReplanningPolicy(GeneratedNetworks(PolicyVae(SPEC)), source, 4, paths)
    policy.reset(plans(2))
    assert not policy.acts_in_parts(np.ones(2, dtype=bool))
    for step in range(7):
        seen = {"a": np.zeros((2, 2)), "b": np.zeros((2, 1))}
        if step in (1, 2):
            seen["a"][0] = 1.3  # too far by 0.06, but at step 1 the plan is too young
        policy.act({key: value.astype(np.float32) for key, value in seen.items()}, EVERYONE)
    # The second recorded snippet is 5 away; the third is 2 away at its third step.
    assert asked == [[0, 0], [1], [2, 1], [2, 2]]
    assert [query.steps.tolist() for query in source.asked] == [[0, 0], [2, 2], [4, 4], [6, 6]]
    assert [query.due.tolist() for query in source.asked if query.due is not None] == [
        [True, True], [True, False], [True, True], [True, True],
    ]  # fmt: skip


def test_horizon_zero_keeps_one_policy_all_episode() -> None:
    source = Counting()
    policy = network_policy(PolicyVae(SPEC), source, horizon=None)
    policy.reset(plans(1))
    for step in range(20):
        assert np.isfinite(policy.act(observe(step, 1), np.ones(1, dtype=bool))).all()
    assert len(source.asked) == 1


def test_history_is_oldest_first_and_starts_with_repeats() -> None:
    source = Counting(history=2)
    policy = network_policy(PolicyVae(SPEC), source, horizon=2)
    policy.reset(plans(1))
    for step in range(3):
        policy.act(observe(step, 1), np.ones(1, dtype=bool))
    assert source.asked[0].state.tolist() == [[0, 0, 0, 0, 0, 0]]
    assert source.asked[1].state.tolist() == [[1, 2, -1, 2, 4, -2]]
    policy.reset(plans(1))
    policy.act(observe(9, 1), np.ones(1, dtype=bool))
    assert source.asked[2].state.tolist() == [[9, 18, -9, 9, 18, -9]]


def test_inactive_environments_are_not_replanned() -> None:
    source = Counting()
    policy = network_policy(PolicyVae(SPEC), source, horizon=2)
    policy.reset([*plans(1), None])
    active = np.array([True, False])
    for step in range(4):
        policy.act(observe(step, 2), active)
    assert policy.cost().num_replans.tolist() == [2, 0]


def test_sources_without_denoiser_count_no_replans() -> None:
    policy = network_policy(PolicyVae(SPEC), MeanLatents(np.zeros(8, dtype=np.float32)), horizon=2)
    policy.reset(plans(2))
    policy.act(observe(0, 2), np.ones(2, dtype=bool))
    assert policy.cost().num_replans.tolist() == [0, 0]


@pytest.fixture(scope="module")
def diffusion() -> LatentDiffusion:
    torch.manual_seed(1)
    denoiser = DenoiserSpec("mlp", 8, 3, (1, 8), "xs", 32, 2, 0.0)
    model = LatentDiffusion(DiffusionSpec(denoiser, "sample", 20, ("state",), 3, 0, 0))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("warm_start", [0.0, 0.6])
def test_the_actions_of_an_environment_do_not_depend_on_its_neighbors(
    diffusion: LatentDiffusion, warm_start: float
) -> None:
    vae = PolicyVae(SPEC).eval()

    def roll(neighbor: EpisodePlan | None) -> list[np.ndarray]:
        source = SampledLatents(diffusion, ("t",), (), "ddpm", 5, 1, warm_start=warm_start)
        policy = network_policy(vae, source, horizon=2)
        policy.reset([plans(1)[0], neighbor])
        active = np.array([True, neighbor is not None])
        steps = [observe(step, 2) for step in range(5)]
        for observation in steps:
            for value in observation.values():
                value[1] = 7.0 if neighbor is None else 0.5
        return [policy.act(observation, active)[0] for observation in steps]

    alone = roll(None)
    beside = roll(EpisodePlan(1, 123_456, "t"))
    assert all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert not np.array_equal(alone[0], alone[2])


def test_a_replan_gets_the_previous_latent_of_its_environment() -> None:
    source = Counting()
    policy = network_policy(PolicyVae(SPEC), source, horizon=2)
    policy.reset([*plans(1), None])
    for step in range(5):
        policy.act(observe(step, 2), np.array([True, False]))
    assert [query.due.tolist() for query in source.asked] == [[True, False]] * 3
    assert [query.previous[0, 0].item() for query in source.asked] == [0.0, 0.0, 1.0]


def run(diffusion: LatentDiffusion, warm_start: float, steps: int) -> np.ndarray:
    torch.manual_seed(2)
    source = SampledLatents(diffusion, ("t",), (), "ddim", 10, 1, warm_start=warm_start)
    policy = network_policy(PolicyVae(SPEC).eval(), source, horizon=2)
    policy.reset(plans(2))
    return np.stack([policy.act(observe(step, 2), np.ones(2, dtype=bool)) for step in range(steps)])


@pytest.mark.parametrize(("warm_start", "later"), [(0.0, 10), (0.5, 5), (0.2, 2), (1.0, 10)])
def test_a_warm_start_calls_the_denoiser_less_after_the_first_replan(
    diffusion: LatentDiffusion, warm_start: float, later: int
) -> None:
    steps: list[int] = []
    note = diffusion.denoiser.leave.register_forward_pre_hook(
        lambda _, given: steps.append(len(given))
    )
    try:
        run(diffusion, warm_start, 7)  # re-plans at steps 0, 2, 4 and 6
    finally:
        note.remove()
    assert len(steps) == 10 + 3 * later


def test_a_warm_start_leaves_an_episodes_first_replan_as_it_was(diffusion: LatentDiffusion) -> None:
    cold, warm = run(diffusion, 0.0, 6), run(diffusion, 0.5, 6)
    assert np.array_equal(cold[:2], warm[:2])
    assert not np.allclose(cold[2:], warm[2:])


def test_environments_before_and_after_their_first_replan_may_replan_together(
    diffusion: LatentDiffusion,
) -> None:
    source = SampledLatents(diffusion, ("t",), (), "ddim", 10, 1, warm_start=0.5)
    numbers, steps, state = np.array([0, 3, 0]), np.zeros(3, dtype=np.int64), torch.zeros(3, 3)
    due = np.array([True, True, False])
    previous = torch.full((3, 8), 0.3)
    mixed = source.latents(ReplanRequest(plans(3), numbers, steps, state, due, previous))
    cold = source.latents(ReplanRequest(plans(3), numbers, steps, state, due, None))
    later = ReplanRequest(plans(3), np.full(3, 3), steps, state, due, previous)
    assert torch.equal(mixed[0], cold[0])
    assert torch.equal(mixed[1], source.latents(later)[1])
    assert not torch.allclose(mixed[1], cold[1])
    # Another previous latent gives another answer; the noise is that of the re-plan's number.
    moved = ReplanRequest(plans(3), np.full(3, 3), steps, state, due, previous + 1.0)
    assert not torch.equal(source.latents(moved)[1], mixed[1])
    other = ReplanRequest(plans(3), np.full(3, 4), steps, state, due, previous)
    assert not torch.equal(source.latents(other)[1], mixed[1])


def test_shuffled_latents_come_from_every_other_task() -> None:
    mean = np.arange(6, dtype=np.float32)[:, None].repeat(8, 1)
    task = np.array([0, 0, 1, 1, 2, 2], dtype=np.int32)
    label = np.zeros(6, dtype=np.int32)
    source = RecordedLatents(mean, task, label, ("x", "y", "z"), ("",))
    for name, allowed in (("x", {2, 3, 4, 5}), ("y", {0, 1, 4, 5}), ("z", {0, 1, 2, 3})):
        drawn = set()
        for seed in range(40):
            query = ReplanRequest(
                [EpisodePlan(0, 100_000 + seed, name)],
                np.zeros(1, dtype=np.int64),
                np.zeros(1, dtype=np.int64),
                torch.zeros(1, 3),
            )
            drawn.add(int(source.latents(query)[0, 0]))
        assert drawn == allowed


def test_shuffled_latents_avoid_the_episodes_own_label() -> None:
    mean = np.arange(4, dtype=np.float32)[:, None].repeat(8, 1)
    label = np.array([0, 1, 0, 1], dtype=np.int32)
    source = RecordedLatents(mean, np.zeros(4, dtype=np.int32), label, ("x",), ("fast", "slow"))
    counts = np.zeros(1, dtype=np.int64)
    for seed in range(20):
        plan = EpisodePlan(0, 100_000 + seed, "x", label="fast")
        drawn = source.latents(ReplanRequest([plan], counts, counts, torch.zeros(1, 3)))
        assert int(drawn[0, 0]) in (1, 3)


def test_random_latents_come_from_any_snippet_of_the_same_task_and_label() -> None:
    mean = np.arange(8, dtype=np.float32)[:, None].repeat(8, 1)
    task = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=np.int32)
    label = np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.int32)
    counts = np.zeros(1, dtype=np.int64)

    def drawn(tasks: tuple[str, ...], name: str, behavior: str, *, own: bool = True) -> set[int]:
        source = RecordedLatents(mean, task, label, tasks, ("fast", "slow"), own)
        plans = [EpisodePlan(0, 100_000 + seed, name, label=behavior) for seed in range(40)]
        queries = [ReplanRequest([plan], counts, counts, torch.zeros(1, 3)) for plan in plans]
        return {int(source.latents(query)[0, 0]) for query in queries}

    assert drawn(("x", "y"), "y", "slow") == {5, 7}
    assert drawn(("x", "y"), "x", "") == {0, 1, 2, 3}
    assert drawn(("x",), "x", "fast") == {0, 2, 4, 6}
    for unknown in ("", "z"):
        for own in (True, False):
            with pytest.raises(ConfigError, match=f"the data have no task '{unknown}'"):
                drawn(("x", "y"), unknown, "", own=own)
    label[:4] = 0
    with pytest.raises(ConfigError, match="no demonstration gives 'x' with the label 'slow'"):
        drawn(("x", "y"), "x", "slow")


def test_nearest_latents_begin_nearest_to_the_current_observation_of_their_own() -> None:
    """Of three observed components the second has a hundred times the spread of the others."""
    mean = np.arange(5, dtype=np.float32)[:, None].repeat(8, 1)
    task = np.array([0, 0, 0, 1, 1], dtype=np.int32)
    label = np.array([0, 1, 0, 0, 1], dtype=np.int32)
    state = np.array([[0, 0, 0], [1, 0, 0], [0, 90, 0], [0.4, 0, 0], [9, 0, 0]], dtype=np.float32)
    state = np.concatenate([state, np.full_like(state, 2) * [1, 0, 0]], axis=1, dtype=np.float32)
    std = np.array([1, 100, 1], dtype=np.float32)
    given = mean, task, label, ("x", "y"), ("fast", "slow")
    source = NearestLatents(*given, own=True, state=state, std=std)
    assert source.history == 2
    counts = np.zeros(2, dtype=np.int64)

    def found(name: str, behavior: str, *current: float) -> int:
        observed = torch.tensor([[*current, 2.0, 0.0, 0.0]]).repeat(2, 1)
        plan = EpisodePlan(0, 100_000, name, label=behavior)
        latents = source.latents(ReplanRequest([plan, None], counts, counts, observed))
        return int(latents[0, 0])

    assert found("x", "", 0.6, 0, 0) == 1
    assert found("x", "", 0.4, 0, 0) == 0  # the fourth row is of another task
    assert found("x", "", 0.6, 90, 0) == 2
    assert found("x", "fast", 1, 0, 0) == 0
    assert found("y", "slow", 0, 0, 0) == 4
    label[3:] = 0
    with pytest.raises(ConfigError, match="no demonstration gives 'y' with the label 'slow'"):
        found("y", "slow", 0, 0, 0)


class _Batches:
    """Replaces the cutting of snippets: returns the requested (episode, offset)."""

    def __init__(self) -> None:
        from lwdctl.data.windows import WindowRule

        self.rule = WindowRule(4)

    def cut(self, episodes: np.ndarray, offsets: np.ndarray) -> object:
        from lwdctl.data.batches import SnippetBatch

        self.asked = (episodes.tolist(), offsets.tolist())
        count = len(episodes)
        return SnippetBatch(
            torch.zeros(count, 4, 3), torch.zeros(count, 4, 2), torch.ones(count, 4),
            *torch.zeros(4, count, dtype=torch.long),
        )  # fmt: skip


def test_an_episode_without_the_label_that_a_model_is_conditioned_on_is_refused() -> None:
    denoiser = DenoiserSpec("mlp", 8, 2, (1, 8), "xs", 32, 2, 0.0)
    model = LatentDiffusion(DiffusionSpec(denoiser, "sample", 20, ("label",), 0, 0, 2)).eval()
    source = SampledLatents(model, ("t",), ("slow", "fast"), "ddim", 5, 1)
    counts, state = np.zeros(2, dtype=np.int64), torch.zeros(2, 3)
    labeled = EpisodePlan(0, 100_000, "t", "fast")
    assert source.latents(ReplanRequest([labeled, None], counts, counts, state)).shape == (2, 8)
    with pytest.raises(ConfigError, match="conditioned on the label"):
        source.latents(
            ReplanRequest([labeled, EpisodePlan(1, 100_001, "t")], counts, counts, state)
        )


def test_tasks_with_equal_seeds_draw_different_noise(diffusion: LatentDiffusion) -> None:
    source = SampledLatents(diffusion, ("x", "y"), (), "ddim", 5, 1)
    counts = np.zeros(2, dtype=np.int64)
    episodes = [EpisodePlan(0, 100_000, "x"), EpisodePlan(1, 100_000, "y")]
    drawn = source.latents(ReplanRequest(episodes, counts, counts, torch.zeros(2, 3)))
    assert not torch.allclose(drawn[0], drawn[1])


def test_oracle_latents_stop_at_the_demonstrations_last_snippet() -> None:
    batches = _Batches()
    source = OracleLatents(PolicyVae(SPEC), batches, np.array([10, 6]))
    query = ReplanRequest(
        [EpisodePlan(0, 1, "t", demonstration=1), EpisodePlan(1, 2, "t", demonstration=0)],
        np.zeros(2, dtype=np.int64),
        np.array([4, 4]),
        torch.zeros(2, 3),
    )
    assert source.latents(query).shape == (2, 8)
    assert batches.asked == ([1, 0], [2, 4])
