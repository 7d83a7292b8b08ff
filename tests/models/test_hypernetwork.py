"""The batched decoder agrees with hypnettorch's own per-sample path."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lwdctl.models import generated
from lwdctl.models.generated import DECODER_SIZES, PolicyDecoder, PolicyShape


def test_batched_decoding_equals_per_sample_path() -> None:
    shape = PolicyShape(5, (16, 16), 3)
    # In double precision: in single, sums in another order differ by up to 4e-6.
    decoder = PolicyDecoder(shape, 8, (10, 10)).double()
    latents = torch.randn(4, 8, dtype=torch.double)
    inputs = torch.randn(4, 7, 5, dtype=torch.double)
    together = generated.run(generated.unpack(decoder(latents), shape), inputs)
    for row in range(4):
        # hypnettorch's default answer for one sample: a list of weight tensors.
        pieces = decoder.network(cond_input=latents[row : row + 1], ret_format="squeezed")
        hidden = inputs[row]
        for number in range(0, len(pieces), 2):
            hidden = torch.nn.functional.linear(hidden, pieces[number], pieces[number + 1])
            if number + 2 < len(pieces):
                hidden = torch.relu(hidden)
        torch.testing.assert_close(together[row], hidden, rtol=1e-9, atol=1e-11)


def test_paper_sizes_for_the_metaworld_policy() -> None:
    shape = PolicyShape(39, (256, 256), 4)
    millions = {
        name: sum(p.numel() for p in PolicyDecoder(shape, 256, layers).parameters()) / 1e6
        for name, layers in DECODER_SIZES.items()
    }
    assert {k: round(v, 1) for k, v in millions.items()} == {
        "xs": 3.9,
        "s": 7.8,
        "m": 15.6,
        "l": 31.2,
    }


def test_fresh_policies_have_sensible_outputs() -> None:
    shape = PolicyShape(20, (256, 256), 4)
    decoder = PolicyDecoder(shape, 256, (100, 100))
    weights = decoder(torch.randn(16, 256))
    outputs = generated.run(generated.unpack(weights, shape), torch.randn(16, 10, 20))
    assert 0.05 < float(outputs.detach().std()) < 20.0


@pytest.mark.slow
def test_matplotlib_is_imported_only_when_it_is_used() -> None:
    script = """
import sys
from lwdctl.models.hypernetwork import HMLP
assert "matplotlib" not in sys.modules
import matplotlib.pyplot as plt
from hypnettorch.utils import misc
from hypnettorch.hnets import HMLP as theirs
assert misc.plt.figure is plt.figure and misc.matplotlib.rcParams is plt.rcParams
assert HMLP is theirs
assert not any(type(finder).__module__.startswith("lwdctl") for finder in sys.meta_path)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
