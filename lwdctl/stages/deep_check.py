"""`lwdctl verify --deep`: read all of an artifact of unknown origin without trusting any of it.

Beyond what every reader checks, all JSON is parsed within bounds; results, analyses and models
become typed values; every array of a store is compared with the description of the data, the
tensors of model files with the model that `model.json` describes; and pictures are opened. Nothing
is executed, nothing outside is followed, and models are built without memory for their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lwdctl.analysis.report.content import embed_png
from lwdctl.analysis.sections import FIGURES, read_sections
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD, read_description
from lwdctl.artifacts.latents import LATENTS_PAYLOAD, LatentStore
from lwdctl.artifacts.origin import lacks_files
from lwdctl.artifacts.snippets import SnippetStore
from lwdctl.artifacts.stored_files import stored_file
from lwdctl.core.errors import ArtifactError, LwdctlError, first_line
from lwdctl.core.untrusted import parse_json, typed
from lwdctl.evaluation.results import ConditionResult
from lwdctl.models import DENOISERS
from lwdctl.models.behavior_cloning import ClonedPolicy, ClonedSpec
from lwdctl.models.chunks import ActionDiffusion, ChunkSpec, LatentChunks
from lwdctl.models.diffusion import DiffusionSpec, LatentDiffusion
from lwdctl.models.files import CUSTOM, SavedPolicy, check_header, saved_method
from lwdctl.models.vae import PolicyVae, VaeSpec
from lwdctl.training.checkpoint import SNAPSHOTS

_MODEL_TYPES = ("vae", "diffusion", "baseline")


def check_deeply(artifact: Artifact) -> int:
    """Check everything that an artifact holds.

    Returns:
        Bytes read, in files and again in zarr chunks.

    Raises:
        ArtifactError: A file is missing, damaged, unknown, or not what its artifact type has.
    """
    total = artifact.verify()
    try:
        _check_files(artifact)
        _check_type(artifact)
    except LwdctlError as error:
        raise ArtifactError(error.message, error.hint) from error
    except Exception as error:  # whatever a description makes of itself
        raise ArtifactError(
            f"{artifact.path} is not what the type '{artifact.type}' holds:"
            f" {type(error).__name__}: {first_line(error)}",
            "make the artifact again",
        ) from error
    return total


def _check_files(artifact: Artifact) -> None:
    for file in artifact.held_files():
        where = str(artifact.path / file.path)
        if file.path.endswith(".json"):
            parse_json(artifact.read(file), where, allow_nan=True)
        elif file.path.endswith(".jsonl"):
            for line in artifact.read(file).splitlines():
                parse_json(line, where, allow_nan=True)
        elif file.path.endswith(".png"):
            embed_png(artifact.path, file.path, "")


def _check_type(artifact: Artifact) -> None:
    if lacks_files(artifact.path, f"{artifact.type}.zarr"):
        _check_description(artifact)
    elif artifact.type == "snippets":
        store = SnippetStore.open(artifact.path / SNIPPETS_PAYLOAD)
        store.check_arrays()
        for index in range(len(store.episodes)):
            store.model(index)
    elif artifact.type == "latents":
        LatentStore.open(artifact.path / LATENTS_PAYLOAD)
    elif artifact.type in _MODEL_TYPES:
        _check_models(artifact)
    elif artifact.type == "evaluation":
        for file in artifact.files_in("episodes", ".json"):
            where = str(artifact.path / file.path)
            record = parse_json(artifact.read(file), where, allow_nan=True)
            ConditionResult.from_json(typed(dict[str, Any], record, where), where)
    elif artifact.type == "analysis":
        _, sections = read_sections(artifact.path)
        left_out = {*artifact.manifest.files} - {*artifact.held_files()}
        names = {f"{FIGURES}/{section.figure}.png" for section in sections if section.figure}
        for name in sorted(names - {file.path for file in left_out}):
            stored_file(artifact.path, name)


def _check_description(artifact: Artifact) -> None:
    """Check what is here of a store that was pulled without its data."""
    if artifact.type == "snippets":
        read_description(artifact.path)


def _check_models(artifact: Artifact) -> None:
    """Compare every file of tensors with the model of the `model.json` beside it."""
    build = _builder(artifact)
    for folder in (".", SNAPSHOTS):
        for file in artifact.files_in(folder, ".safetensors"):
            if build:
                check_header(build, stored_file(artifact.path, file.path))


def _builder(artifact: Artifact) -> Callable[[], nn.Module] | None:
    """Return what builds the model of an artifact; None where code of others would be needed."""
    path = artifact.path
    if artifact.type == "vae":
        vae = VaeSpec.load(path)
        return None if vae.architecture == CUSTOM else lambda: PolicyVae(vae)
    if artifact.type == "diffusion":
        diffusion = DiffusionSpec.load(path)
        return (lambda: LatentDiffusion(diffusion)) if _is_ours(diffusion) else None
    method = saved_method(path)
    if method == "mlp":
        _, cloned = SavedPolicy.load(path, ClonedSpec)
        return lambda: ClonedPolicy(cloned)
    kinds = {"dp": ActionDiffusion, "ldp": LatentChunks}
    if method in kinds:
        _, chunks = SavedPolicy.load(path, ChunkSpec)
        return (lambda: kinds[method](chunks)) if _is_ours(chunks.diffusion) else None
    return None


def _is_ours(spec: DiffusionSpec) -> bool:
    return spec.denoiser.architecture in DENOISERS.rows
