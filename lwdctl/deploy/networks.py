"""The graphs and constants of an exported policy; no state, safe to share between threads."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lwdctl.core.errors import MissingExtraError
from lwdctl.core.records import FloatArray
from lwdctl.deploy.description import CONSTANTS, DECODER, DENOISER, PolicyDescription
from lwdctl.models import ddim

Layer = tuple[FloatArray, FloatArray]
"""Matrix (out, in) and bias (out,) of one layer of a generated network."""


class Networks:
    """Samples latents, decodes them, and runs what comes out.

    Args:
        directory: The exported policy.
        threads: Threads of ONNX Runtime for one graph.

    Raises:
        ArtifactError: No exported policy, one of a newer format, or a damaged one.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, directory: Path, threads: int = 1) -> None:
        self.description = PolicyDescription.read(directory)
        runtime = load_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._denoiser, self._decoder = (
            runtime.InferenceSession(
                str(directory / name), options, providers=["CPUExecutionProvider"]
            )
            for name in (DENOISER, DECODER)
        )
        from safetensors.numpy import load_file

        self.constants: dict[str, FloatArray] = load_file(directory / CONSTANTS)

    def sample(self, state: FloatArray, task: int, label: int, noise: FloatArray) -> FloatArray:
        """Draw a latent for one condition.

        Args:
            state: (history * obs,), environment units, oldest observation first.
            task: Index of the task.
            label: Index of the behavior label.
            noise: Standard normal (latent,).

        Returns:
            (latent,), standardized.
        """
        said = self.description
        every: dict[str, npt.NDArray[Any]] = {
            "state": state[None].astype(np.float32),
            "task": np.array([task], dtype=np.int64),
            "label": np.array([label], dtype=np.int64),
        }
        condition = {name: every[name] for name in said.condition}

        alphas = self.constants["signal_shares"].tolist()

        def predict_clean(latent: FloatArray, step: int) -> FloatArray:
            given = {"latent": latent, "step": np.array([step], dtype=np.int64), **condition}
            predicted = self._denoiser.run(None, given)[0]
            signal, std = ddim.coefficients(alphas[step])
            clean: FloatArray = ddim.clean_sample(predicted, latent, said.prediction, signal, std)
            return clean

        start = noise[None].astype(np.float32)
        latent: FloatArray = ddim.sample(predict_clean, start, said.visited, alphas)[0]
        return latent

    def decode(self, latent: FloatArray) -> FloatArray:
        """Turn a standardized latent (latent,) into a weight vector (weight,)."""
        answer: FloatArray = self._decoder.run(None, {"latent": latent[None]})[0][0]
        return answer

    def unpack(self, weights: FloatArray) -> list[Layer]:
        """Cut a weight vector (weight,) into layers; no weight is copied."""
        layers: list[Layer] = []
        start = 0
        for width, out in self.description.layers:
            middle, end = start + width * out, start + (width + 1) * out
            layers.append((weights[start:middle].reshape(out, width), weights[middle:end]))
            start = end
        return layers

    def act(self, layers: list[Layer], observation: FloatArray, phase: float) -> FloatArray:
        """Run a generated network for one step.

        Args:
            layers: From `unpack`.
            observation: (obs,), environment units.
            phase: Share of the snippet that has passed, in [0, 1].

        Returns:
            (action,), environment units, clipped to the action's limits.
        """
        said, fixed = self.description, self.constants
        hidden = (observation - fixed["observation_mean"]) / fixed["observation_scale"]
        if said.time_input:
            hidden = np.append(hidden, np.float32(2.0 * phase - 1.0))
        for matrix, bias in layers[:-1]:
            hidden = np.maximum(matrix @ hidden + bias, 0.0)
        matrix, bias = layers[-1]
        action = (matrix @ hidden + bias) * fixed["action_scale"] + fixed["action_mean"]
        if said.reference_start >= 0:
            start = said.reference_start
            action = action + observation[start : start + said.action.size]
        low, high = fixed["action_low"], fixed["action_high"]
        clipped: FloatArray = np.clip(action, low, high).astype(np.float32)
        return clipped


def load_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            "exported policies need the package 'onnxruntime', which is not installed",
            "pip install onnxruntime, or with everything: pip install 'lwdctl[onnx]'",
        ) from error
