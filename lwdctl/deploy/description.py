"""The description of an exported policy: `policy.json`, beside its graphs and constants."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lwdctl.artifacts.files import sha256_of
from lwdctl.core.errors import ArtifactError
from lwdctl.core.records import ActionSpec, ObservationSpec

FORMAT = "lwdctl-policy"
FORMAT_VERSION = 2
DESCRIPTION = "policy.json"
DENOISER = "denoiser.onnx"
DECODER = "decoder.onnx"
CONSTANTS = "constants.safetensors"


@dataclass(frozen=True)
class PolicyDescription:
    """Everything but tensors that running an exported policy needs.

    Attributes:
        observations: What the policy observes, in the order of its components.
        action: What it outputs. Limits that the data does not state are infinite here, and null
            in the file.
        history: Observations in the state condition, oldest first.
        snippet_length: Steps of the snippets it was trained on: the unit of its time input.
        horizon: Action horizon: steps executed per re-plan; None keeps one plan all episode.
        time_input: Whether the network also sees the fraction of its snippet that has elapsed.
        reference_start: First observation component that actions are relative to; None where
            they are absolute.
        layers: (in, out) of every layer of the generated network. A weight vector holds, layer
            by layer, the matrix (out, in) row by row and then the bias (out,).
        latent_size: Components of the latent.
        condition: Parts of the denoiser's condition, out of state, task, label: its inputs.
        tasks: Task names in the order of their indices.
        labels: Behavior labels in the order of their indices.
        prediction: What the denoiser predicts: `"sample"`, `"epsilon"` or `"v_prediction"`.
        sampler: `"ddim"`.
        timesteps: Inference timesteps from the noisiest to the cleanest.
        provenance: Artifacts with digests, software versions, commit.
        parity: Difference from the policy that was exported, and the timings of both.
        files: File name to `bytes` and `sha256`.
    """

    observations: tuple[ObservationSpec, ...]
    action: ActionSpec
    history: int
    snippet_length: int
    horizon: int | None
    time_input: bool
    reference_start: int | None
    layers: tuple[tuple[int, int], ...]
    latent_size: int
    condition: tuple[str, ...]
    tasks: tuple[str, ...]
    labels: tuple[str, ...]
    prediction: str
    sampler: str
    timesteps: tuple[int, ...]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def write(self, directory: Path) -> None:
        """Write `policy.json`, with the digests of the other files as they are now."""
        names = (DENOISER, DECODER, CONSTANTS)
        files = {
            name: {
                "bytes": (directory / name).stat().st_size,
                "sha256": sha256_of(directory / name),
            }
            for name in names
        }
        values = asdict(replace(self, files=files))
        for side in ("low", "high"):
            values["action"][side] = [
                v if math.isfinite(v) else None for v in values["action"][side]
            ]
        body = {"format": FORMAT, "format_version": FORMAT_VERSION, **values}
        text = json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False)
        (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> PolicyDescription:
        """Read `policy.json` and check the files beside it.

        Raises:
            ArtifactError: No exported policy, one of another format version, or a damaged one.
        """
        body = _load(directory / DESCRIPTION)
        _check_format(directory / DESCRIPTION, body)
        try:
            found = _build(body)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{directory / DESCRIPTION} is damaged: {error!r}", "export the policy again"
            ) from error
        for name in (DENOISER, DECODER, CONSTANTS):
            _check_file(directory / name, found.files.get(name, {}))
        return found


def _load(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{path.parent} holds no exported policy: {path.name} cannot be read"
            f" ({error.strerror})",
            "export one with: lwdctl export policy",
        ) from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}", "export the policy again") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} does not describe an exported policy", "export one with: lwdctl export policy"
        )
    return body


def _check_format(path: Path, body: dict[str, Any]) -> None:
    version = body.pop("format_version", None)
    body.pop("format")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}, this lwdctl reads version {FORMAT_VERSION}",
            "export the policy again with lwdctl export policy, or install the lwdctl that wrote it"
            " (see 'provenance' in the file)",
        )


def _build(body: Mapping[str, Any]) -> PolicyDescription:
    action = dict(body["action"])
    for side, sign in (("low", -1.0), ("high", 1.0)):
        action[side] = tuple(sign * math.inf if v is None else float(v) for v in action[side])
    lists = {name: tuple(body[name]) for name in ("condition", "tasks", "labels", "timesteps")}
    return PolicyDescription(
        **{
            **body,
            **lists,
            "observations": tuple(ObservationSpec(**item) for item in body["observations"]),
            "action": ActionSpec(**action),
            "layers": tuple((int(i), int(o)) for i, o in body["layers"]),
        }
    )


def _check_file(path: Path, recorded: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise ArtifactError(
            f"{path} is missing", "copy the whole directory, or export the policy again"
        )
    if sha256_of(path) != recorded.get("sha256"):
        raise ArtifactError(
            f"{path} is not the file that was exported: its SHA-256 differs",
            "copy the directory again, or export the policy again",
        )
