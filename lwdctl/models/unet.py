"""The conditional 1-D U-Net of Diffusion Policy (Chi et al. 2023), reimplemented.

Its levels hold two FiLM residual blocks each, with strided convolutions between them. The
number of parameters equals the published network's at every size of the paper's table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lwdctl.configs import DenoiserSize
from lwdctl.core.errors import ConfigError
from lwdctl.models.denoiser import Denoiser, DenoiserSpec, StepEmbedding, in_parts

GROUPS = 8
KERNEL = 5


@dataclass(frozen=True)
class UnetSize:
    """One row of the paper's table: step-embedding size and channels per level."""

    step_embedding: int
    channels: tuple[int, ...]

    @property
    def multiple(self) -> int:
        """Sequence lengths must be a multiple of this."""
        return int(2 ** (len(self.channels) - 1))


UNET_SIZES: dict[DenoiserSize, UnetSize] = {
    "xs": UnetSize(64, (16, 32, 64)),
    "s": UnetSize(256, (32, 64, 128)),
    "m": UnetSize(256, (128, 256, 256)),
    "l": UnetSize(256, (256, 512, 1024)),
    "xl": UnetSize(512, (512, 1024, 2048)),
}


class Convolution(nn.Conv1d):
    """A convolution that is computed as one matrix product where a CPU samples few steps with it.

    For one robot torch's own convolution takes up to six times as long: it brings all weights into
    another order at every call. The sums are the same, in another order.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Steps that one output sees, an odd number; as many outputs as steps are kept.
        stride: Steps between two outputs.
    """

    most_rows = 32
    """Rows of the product, batch times steps, up to which it was measured to be faster."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map (batch, channel, time) to (batch, outputs, time / stride)."""
        (kernel,), (stride,) = self.kernel_size, self.stride
        rows = len(sequence) * (sequence.shape[2] // stride)
        is_on_cpu = sequence.device.type == "cpu"
        if not is_on_cpu or rows > self.most_rows or torch.is_grad_enabled():
            return super().forward(sequence)
        seen = nn.functional.pad(sequence, (kernel // 2,) * 2).unfold(2, kernel, stride)
        seen = seen.transpose(1, 2).flatten(2)
        return nn.functional.linear(seen, self.weight.flatten(1), self.bias).transpose(1, 2)


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(inputs, outputs, KERNEL),
        nn.GroupNorm(GROUPS, outputs),
        nn.Mish(),
    )


class FilmResidual(nn.Module):
    """Two convolutions with a scale and a shift between them, `film` of the context."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs)
        self.second = _convolution(outputs, outputs)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition, 2 * outputs))
        self.skip = Convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, sequence: Tensor, film: Tensor) -> Tensor:
        """Map (batch, channel, time) to (batch, outputs, time), with film (batch, 2 * outputs)."""
        scale, shift = film.unsqueeze(-1).chunk(2, dim=1)
        hidden = scale * self.first(sequence) + shift
        return self.second(hidden) + self.skip(sequence)  # type: ignore[no-any-return]


class ConditionalUnet1d(nn.Module):
    """U-Net over a sequence, conditioned on a step embedding and a global vector."""

    def __init__(self, channels: int, condition_size: int, size: UnetSize) -> None:
        super().__init__()
        width = size.step_embedding
        self.step = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        condition = width + condition_size
        levels = [channels, *size.channels]
        pairs = list(itertools.pairwise(levels))
        self.down = nn.ModuleList(self._pair(i, o, condition) for i, o in pairs)
        self.shrink = nn.ModuleList(Convolution(o, o, 3, 2) for _, o in pairs[:-1])
        top = levels[-1]
        self.middle = self._pair(top, top, condition)
        back = pairs[:0:-1]
        self.up = nn.ModuleList(self._pair(2 * o, i, condition) for i, o in back)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(i, i, 4, 2, 1) for i, _ in back)
        first = size.channels[0]
        self.leave = nn.Sequential(_convolution(first, first), Convolution(first, channels, 1))

    @staticmethod
    def _pair(inputs: int, outputs: int, condition: int) -> nn.ModuleList:
        return nn.ModuleList(FilmResidual(size, outputs, condition) for size in (inputs, outputs))

    def forward(self, sequence: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """Denoise a sequence (batch, channel, time), its time a multiple of `UnetSize.multiple`.

        The step embedding is (batch, step_embedding), the condition (batch, condition).
        """
        return self.denoise(sequence, self.films(step, condition))

    def films(self, step: Tensor, condition: Tensor, rows: int | None = None) -> tuple[Tensor, ...]:
        """Return scales and shifts (batch, 2 * outputs) of every block, in order.

        With `rows`, the numbers are those of batches of that many rows; see `in_parts`.
        """
        context = torch.cat([in_parts(self.step, step, rows), condition], dim=1)
        blocks = [block for pair in (*self.down, self.middle, *self.up) for block in pair]
        return tuple(in_parts(block.film, context, rows) for block in blocks)

    def denoise(self, sequence: Tensor, films: tuple[Tensor, ...]) -> Tensor:
        """Denoise a sequence (batch, channel, time) with what `films` returned."""
        film, skipped, hidden = iter(films), [], sequence
        for number, pair in enumerate(self.down):
            hidden = _through(pair, hidden, film)
            skipped.append(hidden)
            if number < len(self.shrink):
                hidden = self.shrink[number](hidden)
        hidden = _through(self.middle, hidden, film)
        for pair, grow in zip(self.up, self.grow, strict=True):
            hidden = grow(_through(pair, torch.cat([hidden, skipped.pop()], dim=1), film))
        return self.leave(hidden)  # type: ignore[no-any-return]


def _through(pair: nn.Module, hidden: Tensor, film: Iterator[Tensor]) -> Tensor:
    for block in pair.children():
        hidden = block(hidden, next(film))
    return hidden


class LatentUnet(Denoiser):
    """The U-Net of Diffusion Policy over a latent laid out as (length, channels)."""

    uses_layout = True

    def __init__(self, spec: DenoiserSpec) -> None:
        super().__init__()
        size = UNET_SIZES[spec.unet_size]
        if spec.dropout:
            raise ConfigError("the U-Net has no dropout", "use dropout 0, or another denoiser")
        if spec.layout[0] % size.multiple:
            raise ConfigError(
                f"the layout {spec.layout[0]}x{spec.layout[1]} does not fit a U-Net of size"
                f" '{spec.unet_size}'",
                f"its length must be a multiple of {size.multiple}",
            )
        self.layout = spec.layout
        self.embedding = StepEmbedding(size.step_embedding)
        self.network = ConditionalUnet1d(spec.layout[1], spec.condition_size, size)

    def context(
        self, step: Tensor, condition: Tensor, rows: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return scales and shifts of every block; see `ConditionalUnet1d.films`."""
        return self.network.films(self.embedding(step), condition, rows)

    def predict(self, latent: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Return the prediction (batch, latent)."""
        length, channels = self.layout
        sequence = latent.view(-1, length, channels).transpose(1, 2)
        return self.network.denoise(sequence, context).transpose(1, 2).flatten(1)
