"""`lwdctl ingest`: demonstrations in any known format into a snippet store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import SNIPPETS_PAYLOAD
from lwdctl.artifacts.files import fingerprints_beside
from lwdctl.artifacts.references import sanitize_name
from lwdctl.configs import IngestConfig
from lwdctl.core.config import to_mapping
from lwdctl.core.errors import ConfigError
from lwdctl.core.records import SourceSpec
from lwdctl.data.files.bounds import check_no_holes
from lwdctl.data.ingest import ingest
from lwdctl.data.quality.checks import declared_action
from lwdctl.data.reader import open_source, paths_of
from lwdctl.data.readers.robomimic_writer import DEMONSTRATIONS_PAYLOAD
from lwdctl.envs.table import is_own, load_environment, with_outside_environment
from lwdctl.stages.stage import StageContext

DEMONSTRATIONS = "demonstrations"
MINIMUM_SHARED_NAME = 3


def run(config: IngestConfig, inputs: Mapping[str, Artifact], context: StageContext) -> Artifact:
    """Read the files into a store and publish it as a `snippets` artifact.

    Raises:
        ConfigError: No path is given and nothing was collected, or the actions are not what was
            requested.
        DataError: A file cannot be read; nothing is left behind.
    """
    paths, parents = _sources(config, inputs)
    name = context.name or _default_name(paths, parents)
    data_format = "robomimic" if parents else config.format
    check_no_holes(paths)  # all bytes are read for their fingerprints
    with (
        fingerprints_beside(paths) as digests,
        open_source(data_format, paths, config) as source,
    ):
        source.spec = with_outside_environment(source.spec)
        _check_environment(source.spec, config, context)
        with context.workspace.begin(
            "snippets", name, config=to_mapping(config), inputs=parents
        ) as output:
            _, summary = ingest(source, config, output.path / SNIPPETS_PAYLOAD, context.progress)
            if not source.spec.env.adapter:
                context.progress.message(
                    "the data name no environment: to evaluate policies on the command line,"
                    " ingest them with --env ADAPTER/NAME (--env package.module:Class/NAME for one"
                    " of your own) before you train; in Python lwdctl.evaluate(..., env=ENV) takes"
                    " any"
                )
            summary["sources"] = digests.result()
            return output.publish(summary, seed=config.seed)


def _check_environment(spec: SourceSpec, config: IngestConfig, context: StageContext) -> None:
    """Compare the data with an environment of the user's own, before anything is trained on them.

    Raises:
        ConfigError: It has no task, or not the observations and actions of the data.
    """
    env = spec.env
    if not env.adapter or is_own(env.adapter):
        return
    if not env.tasks:
        raise ConfigError(
            f"the data name no task of '{env.adapter}'",
            f"--env {env.adapter}/NAME, where NAME is the task: any name that the class takes",
        )
    # Imported here: it imports torch and the simulators.
    from lwdctl.evaluation.checks import check_compatible, check_described

    stored = replace(spec, action=declared_action(spec.action, config))
    declared = load_environment(env)
    try:
        if isinstance(getattr(declared, "observations", None), tuple) and hasattr(
            declared, "action"
        ):
            check_described(stored, declared, env.tasks[0])
        else:
            check_compatible(stored, env, env.tasks[0])
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - the simulator may be on another machine
        context.progress.message(
            f"the data were not compared with the environment, which does not run here: {error}"
        )


def _sources(
    config: IngestConfig, inputs: Mapping[str, Artifact]
) -> tuple[tuple[Path, ...], list[Artifact]]:
    """Return the paths to read and the artifacts that they belong to."""
    if config.paths:
        return paths_of(config.paths), []
    if config.format not in (None, "robomimic") or DEMONSTRATIONS not in inputs:
        command = " ".join(filter(None, ("lwdctl ingest", config.format, "PATH")))
        raise ConfigError("no path to read is given", command)
    artifact = inputs[DEMONSTRATIONS]
    return (artifact.payload(DEMONSTRATIONS_PAYLOAD),), [artifact]


def _default_name(paths: Sequence[Path], parents: Sequence[Artifact]) -> str:
    """Return the input's name for the store; for several files, what their names share."""
    if parents:
        return parents[0].name
    names = [_bare_name(path) for path in paths]
    shared = os.path.commonprefix(names).rstrip("._-")  # noqa: RUF071 - letters are meant
    return sanitize_name(names[0] if len(shared) < MINIMUM_SHARED_NAME else shared)


def _bare_name(path: Path) -> str:
    path = path.absolute()
    if path.name == "main_data.hdf5":  # the name of every Minari file
        path = path.parent
    if path.name == "data":
        path = path.parent
    name = path.name
    for suffix in (".zip", ".zarr", ".npz", ".hdf5", ".h5"):
        name = name.removesuffix(suffix)
    return name
