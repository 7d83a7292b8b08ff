"""`lwdctl verify --deep`: read all of an artifact of unknown origin without trusting any of it.

Beyond what every reader checks, all JSON becomes typed values, the tensors of model files are
compared with the model that `model.json` describes, and pictures are looked into. Nothing is
executed, nothing outside is followed, and models are built without memory for their weights.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import nn

from lwdctl.analysis.sections import FIGURES, read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.latents import LATENTS_PAYLOAD, LatentStore
from lwdctl.artifacts.manifest import PayloadFile
from lwdctl.artifacts.snippets import SNIPPETS_PAYLOAD, SnippetStore
from lwdctl.artifacts.stored_files import stored_file
from lwdctl.configs import StageSettings
from lwdctl.core.errors import ArtifactError, LwdctlError, first_line
from lwdctl.core.records import SourceSpec
from lwdctl.core.untrusted import MOST_BYTES, parse_json
from lwdctl.evaluation.results import ConditionResult
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import SPEC, unique_tensors
from lwdctl.models.vae import PolicyVae, VaeSpec

_ENDING = ".safetensors"
_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_MODEL_TYPES = ("vae", "diffusion", "baseline")


def check_deeply(artifact: Artifact) -> int:
    """Check everything that an artifact holds.

    Returns:
        Bytes read, in files and again in zarr chunks.

    Raises:
        ArtifactError: A file is missing, damaged, unknown, or not what its artifact type has.
    """
    total = artifact.verify()
    for file in artifact.manifest.files:
        where = str(artifact.path / file.path)
        try:
            if file.path.endswith(".json") and not _is_in_store(file):
                parse_json(artifact.read(file), where, allow_nan=True)
            elif file.path.endswith(".jsonl"):
                for line in artifact.read(file).splitlines():
                    parse_json(line, where, allow_nan=True)
            elif file.path.endswith(_ENDING):
                _tensors_of(artifact, file)
        except (ValueError, TypeError, KeyError) as error:
            raise _wrong(artifact, where, error) from error
    try:
        _check_type(artifact)
    except LwdctlError as error:
        raise ArtifactError(error.message, error.hint) from error
    except Exception as error:  # whatever a description makes of itself
        raise _wrong(artifact, str(artifact.path), error) from error
    return total


def _wrong(artifact: Artifact, where: str, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{where} is not what a {artifact.type} holds: {type(error).__name__}: {first_line(error)}",
        "make the artifact again",
    )


def _is_in_store(file: PayloadFile) -> bool:
    return any(part.endswith(".zarr") for part in PurePosixPath(file.path).parts[:-1])


def _check_type(artifact: Artifact) -> None:
    if artifact.type == "snippets":
        store = SnippetStore.open(artifact.path / SNIPPETS_PAYLOAD)
        for index in range(len(store.episodes)):
            store.model(index)
    elif artifact.type == "latents":
        _check_latents(LatentStore.open(artifact.path / LATENTS_PAYLOAD))
    elif artifact.type in _MODEL_TYPES:
        _check_models(artifact)
    elif artifact.type == "evaluation":
        for file in artifact.files_in("episodes", ".json"):
            where = str(artifact.path / file.path)
            ConditionResult.from_json(parse_json(artifact.read(file), where, allow_nan=True))
    elif artifact.type == "analysis":
        _, sections = read_sections(artifact.path)
        for section in sections:
            if section.figure:
                stored_file(artifact.path, f"{FIGURES}/{section.figure}.png")


def _check_latents(store: LatentStore) -> None:
    for name in ("mean", "log_variance", "state", "task", "label", "episode", "start"):
        rows = len(store.read(name))
        if rows != store.count:
            raise ValueError(f"{name} has {rows} rows, not {store.count}")
    store.statistics()


def _check_models(artifact: Artifact) -> None:
    """Compare every file of tensors with the model of the `model.json` beside it."""
    names = {file.path: file for file in artifact.manifest.files}
    if SPEC not in names:
        raise ArtifactError(f"{artifact.path / SPEC} is missing", "make the artifact again")
    values = parse_json(artifact.read(names[SPEC]), str(artifact.path / SPEC))
    _check_bounds(values)
    expected = _shapes_of(artifact.type, values)
    for name, file in names.items():
        folder = PurePosixPath(name).parent.as_posix()
        if not name.endswith(_ENDING) or folder not in (".", "snapshots") or expected is None:
            continue
        found = _tensors_of(artifact, file)
        if found != expected:
            odd = min(set(found.items()) ^ set(expected.items()))[0]
            raise ArtifactError(
                f"{artifact.path / name}: the tensor '{odd}' is not the one that {SPEC} describes",
                "make the artifact again",
            )


def _shapes_of(kind: str, values: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Return name to shape of a model's tensors; None for a model of another package."""
    with torch.device("meta"):
        model = _model_of(kind, dict(values))
    if model is None:
        return None
    return {name: tuple(value.shape) for name, value in unique_tensors(model).items()}


def _model_of(kind: str, values: dict[str, Any]) -> nn.Module | None:
    if kind == "vae":
        return PolicyVae(VaeSpec.from_mapping(values))
    if kind == "diffusion":
        return LatentDiffusion(DiffusionSpec.from_mapping(values))
    method = values.pop("method")
    SourceSpec.from_mapping(values.pop("source"))
    if method == "mlp":
        return ClonedPolicy(ClonedSpec.from_mapping(values))
    if method in ("dp", "ldp"):
        values.pop("executed")
        spec = ChunkSpec.from_mapping(values)
        return ActionDiffusion(spec) if method == "dp" else LatentChunks(spec)
    return None


def _check_bounds(values: Any, name: str = "") -> None:
    """Check the sizes of a model before any part of it is built."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            _check_bounds(value, str(key))
    elif isinstance(values, list):
        for value in values:
            _check_bounds(value, name)
    elif isinstance(values, int):
        bound = StageSettings.bounds.get(name)
        most = bound.most if bound else 10_000_000
        if not -1 <= values <= most:
            raise ValueError(f"{SPEC}: '{name}' is {values}, more than {most}")


def _tensors_of(artifact: Artifact, file: PayloadFile) -> dict[str, tuple[int, ...]]:
    """Return name to shape of the tensors that the header of a safetensors file declares.

    Raises:
        ValueError: The header is none, or the tensors do not fill the file.
    """
    path = stored_file(artifact.path, file.path)
    with path.open("rb") as content:
        prefix = content.read(8)
        size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else MOST_BYTES
        if size >= min(MOST_BYTES, file.size):
            raise ValueError("it has no header of a safetensors file")
        header = parse_json(content.read(size).rstrip(), str(path))
    tensors: dict[str, tuple[int, ...]] = {}
    parts: list[tuple[int, int]] = []
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        shape, (start, stop) = tuple(tensor["shape"]), tensor["data_offsets"]
        count = torch.Size(shape).numel() * _TYPES[tensor["dtype"]].itemsize
        if stop - start != count:
            raise ValueError(f"'{name}' has {stop - start} bytes, not {count}")
        tensors[name] = shape
        parts.append((start, stop))
    ends = [0, *(stop for _, stop in sorted(parts))]
    if [start for start, _ in sorted(parts)] != ends[:-1] or ends[-1] != file.size - 8 - size:
        raise ValueError("its tensors do not fill it")
    return tensors
