"""Normalizers of the VAE: fitted from the store's statistics, and honest about what they leave."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.training.vae import fit_normalizers

SPEC = VaeSpec(("seen",), 2, 3, None, 4, 8, (8,), (8,), True)


@pytest.mark.parametrize(
    ("deviation", "count"), [((1.0, 5e-5, 0.0), 1), ((0.02, 0.1, 0.0), 0), ((5e-5, 5e-5, 2e-5), 3)]
)
def test_actions_in_tiny_steps_are_reported(deviation: tuple[float, ...], count: int) -> None:
    store = SimpleNamespace(
        moments=lambda keys, _: SimpleNamespace(
            mean=np.zeros(2 if keys == ("seen",) else 3),
            deviation=np.ones(2) if keys == ("seen",) else np.array(deviation),
        )
    )
    model = PolicyVae(SPEC)
    assert fit_normalizers(model, store) == count
    expected = [1.0 if item <= 1e-4 else item for item in deviation]
    np.testing.assert_allclose(model.action.scale.numpy(), expected, rtol=1e-6)
