"""Rollouts through a model of the next observation, on a robot whose dynamics are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lwdctl.models import generated
from lwdctl.models.dynamics import Dynamics
from lwdctl.models.files import saved_tensors
from lwdctl.models.vae import PolicyVae, VaeSpec

LENGTH, STEPS, ROWS = 8, 4, 64
SPEC = VaeSpec(("point",), 2, 2, None, LENGTH, 4, (8,), (8,), time_input=False)


def straight(rows: int = ROWS, recorded: int = LENGTH) -> SimpleNamespace:
    """Points that move by their action, the same in every step."""
    random = torch.Generator().manual_seed(1)
    step = 0.1 * torch.randn(rows, 1, 2, generator=random)
    time = torch.arange(LENGTH, dtype=torch.float32)[None, :, None]
    begin = torch.randn(rows, 1, 2, generator=random)
    mask = (time[..., 0] < recorded).float().expand(rows, LENGTH)
    observations = begin + step * time.clamp(max=recorded - 1)
    return SimpleNamespace(
        observations=observations, actions=step.expand(rows, LENGTH, 2), mask=mask
    )


class Exact(Dynamics):
    """Moves by the action."""

    def __init__(self, steps: int = STEPS, noise: float = 0.0) -> None:
        super().__init__(2, 2, steps, growth=10, noise=noise)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return observations + self.factor * actions


def constant_policies(actions: Tensor) -> list[generated.Layer]:
    """Policies that output a constant action, (batch, action), whatever they see."""
    return [(torch.zeros(len(actions), 2, 2), actions.unsqueeze(1))]


def terms(dynamics: Dynamics, batch: SimpleNamespace, actions: Tensor) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return dynamics.terms(PolicyVae(SPEC), constant_policies(actions), batch, random)


def test_a_policy_that_acts_as_recorded_has_no_error() -> None:
    batch = straight()
    found = terms(Exact().eval(), batch, batch.actions[:, 0])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {"dynamics": 0, "rollout": 0, "drift": 0}, abs=1e-10
    )


def test_the_error_of_a_policy_grows_as_its_states_leave_the_recorded_ones() -> None:
    batch = straight()
    found = terms(Exact().eval(), batch, batch.actions[:, 0] + torch.tensor([0.1, 0.0]))
    distances = [(0.1 * step) ** 2 / 2 for step in range(1, STEPS + 1)]
    # A rollout that begins near the end of its snippet has fewer recorded steps.
    assert distances[0] < found["rollout"].item() < sum(distances) / STEPS
    assert found["drift"].item() == pytest.approx(0, abs=1e-10)


def test_policies_that_run_away_stay_finite() -> None:
    batch, dynamics = straight(), Exact()
    actions = torch.full((ROWS, 2), 1e30, requires_grad=True)
    terms(dynamics, batch, actions)["rollout"].backward()
    assert actions.grad is not None
    assert bool(actions.grad.isfinite().all())


def test_a_step_weighs_as_many_rollouts_as_pass_it() -> None:
    """The error of one step does not weigh more where rollouts end with the recording."""
    batch, dynamics = straight(20_000), Exact().eval()
    weights = []
    for step in range(1, LENGTH):
        moved = SimpleNamespace(**vars(batch))
        moved.observations = batch.observations.clone()
        moved.observations[:, step:] += 1.0  # the model misses this transition alone
        weights.append(terms(dynamics, moved, batch.actions[:, 0])["dynamics"].item())
    covered = [min(step, STEPS) / STEPS / (LENGTH - 1) for step in range(1, LENGTH)]
    assert weights == pytest.approx(covered, rel=0.1)


def test_padded_steps_do_not_count() -> None:
    batch = straight(recorded=3)
    found = terms(Exact().eval(), batch, batch.actions[:, 0])
    assert found["rollout"].item() == pytest.approx(0, abs=1e-10)  # else the padding would stop it
    assert found["dynamics"].item() == pytest.approx(0, abs=1e-10)
    only = terms(Exact().eval(), straight(recorded=1), straight().actions[:, 0])
    assert only["rollout"].item() == 0


def test_gradients_of_the_rollout_reach_the_policy_alone() -> None:
    batch, dynamics = straight(), Exact()
    actions = (batch.actions[:, 0] + 0.1).requires_grad_()
    found = terms(dynamics, batch, actions)
    found["rollout"].backward(retain_graph=True)
    assert dynamics.factor.grad is None
    assert actions.grad is not None
    assert (actions.grad > 0).any()
    actions.grad = None
    found["dynamics"].backward()
    assert dynamics.factor.grad is not None
    assert actions.grad is None


def test_rollouts_grow_while_the_model_is_trained() -> None:
    dynamics, batch = Exact(), straight(4)
    assert dynamics.weights().tolist() == [1, 0, 0, 0]
    for _ in range(5):
        terms(dynamics, batch, batch.actions[:, 0])
    assert dynamics.weights().tolist() == [1, 1, 0.5, 0]
    for _ in range(20):
        terms(dynamics, batch, batch.actions[:, 0])
    assert dynamics.weights().tolist() == [1, 1, 1, 1]
    terms(dynamics.eval(), batch, batch.actions[:, 0])
    assert float(dynamics.calls) == 25  # validation does not count


def test_noise_is_on_the_first_observation_of_a_rollout_in_training_alone() -> None:
    batch, dynamics = straight(), Exact(noise=0.5)
    assert terms(dynamics, batch, batch.actions[:, 0])["rollout"].item() > 0.01
    assert terms(dynamics.eval(), batch, batch.actions[:, 0])["rollout"].item() < 1e-9


@pytest.mark.slow
def test_it_learns_the_next_observation() -> None:
    torch.manual_seed(0)
    dynamics, batch = Dynamics(2, 2, STEPS, growth=1), straight()
    optimizer = torch.optim.Adam(dynamics.parameters(), 1e-2)
    errors = []
    for _ in range(200):
        error = terms(dynamics, batch, batch.actions[:, 0])["dynamics"]
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.05 * errors[0]


def test_it_is_not_saved_with_the_policies() -> None:
    plain, model = PolicyVae(SPEC), PolicyVae(SPEC)
    model.dynamics = Dynamics(2, 2, STEPS, growth=1)
    assert saved_tensors(model).keys() == saved_tensors(plain).keys()
    assert any(name.startswith("dynamics.") for name in model.state_dict())
