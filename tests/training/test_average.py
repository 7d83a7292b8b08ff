"""The averaged weights follow the schedules they name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lwdctl.training.average import averaged


@pytest.mark.parametrize("decay", [0.9999, 0.6])
def test_the_power_schedule_is_diffusion_policys(decay: float) -> None:
    """Their EMAModel (update_after_step 0, inv_gamma 1, power 0.75), update by update."""
    model = nn.Linear(1, 1, bias=False)
    average = averaged(model, decay, power=0.75)
    expected = 0.0
    for update in range(50):
        with torch.no_grad():
            model.weight.fill_(float(update % 7) - 2.0)
        average.update_parameters(model)
        step = max(0, update - 1)
        share = 0.0 if step <= 0 else min(decay, 1.0 - (1.0 + step) ** -0.75)
        expected = share * expected + (1.0 - share) * model.weight.item()
        assert average.module.weight.item() == pytest.approx(expected, abs=1e-5)
