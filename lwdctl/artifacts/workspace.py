"""The workspace: the directory that holds all artifacts, `<root>/<type>/<name>/v0001/`."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lwdctl.artifacts import lineage
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.files import matching, user_path
from lwdctl.artifacts.leftovers import Leftover, leftovers
from lwdctl.artifacts.manifest import MANIFEST_NAME
from lwdctl.artifacts.references import (
    MADE_FROM,
    MAKERS,
    Reference,
    check_name,
    format_reference,
    how_to_make,
    parse_reference,
    version_directory,
    version_of,
)
from lwdctl.artifacts.run_in_progress import (
    RunInProgress,
    RunRecord,
    begin_run,
    unfinished_runs,
)
from lwdctl.core.errors import ArtifactError
from lwdctl.core.plain_text import encodable
from lwdctl.core.suggest import did_you_mean

DEFAULT_ROOT = Path("lwd-runs")
ROOT_VARIABLE = "LWDCTL_WORKSPACE"

_LIST_HINT = "list all artifacts with: lwdctl list"


@dataclass(frozen=True)
class DamagedArtifact:
    """A version directory that cannot be used, and why."""

    reference: str
    path: Path
    reason: str
    hint: str = ""


class Workspace:
    """Finds, opens and begins artifacts below one directory.

    Args:
        root: The directory; it is created when something is first written.
        reserved: Type and name of artifacts to the number that their next version gets; the next
            free number where that version exists. Stages that run side by side have the numbers
            that they would get one after the other.
    """

    def __init__(self, root: Path, reserved: Mapping[tuple[str, str], int] | None = None) -> None:
        self.root = root
        self._reserved = reserved or {}

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    @classmethod
    def locate(cls, explicit: Place = None) -> Workspace:
        """Return the workspace given or named, else `$LWDCTL_WORKSPACE`, else `./lwd-runs`."""
        if isinstance(explicit, Workspace):
            return explicit
        return cls(user_path(explicit or os.environ.get(ROOT_VARIABLE) or DEFAULT_ROOT))

    def artifacts(self, artifact_type: str = "") -> list[Artifact]:
        """Return the finished artifacts, oldest first; those in `damaged` are left out."""
        return self._inspected(artifact_type)[0]

    def damaged(self, artifact_type: str = "") -> list[DamagedArtifact]:
        """Return the version directories whose manifest cannot be used."""
        return self._inspected(artifact_type)[1]

    def inventory(self, artifact_type: str = "") -> tuple[list[Artifact], list[DamagedArtifact]]:
        """Return the finished artifacts, oldest first, and those that are found to be damaged.

        Looks for missing and foreign files, other sizes, and changed JSON files, without reading
        the large files.
        """
        usable = []
        found, damaged = self._inspected(artifact_type)
        for item in found:
            try:
                item.check_quickly()
            except ArtifactError as error:
                damaged.append(DamagedArtifact(item.reference, item.path, error.message))
            else:
                usable.append(item)
        return usable, damaged

    def unfinished(self, artifact_type: str = "") -> list[RunRecord]:
        """Return the unfinished runs, oldest first."""
        return unfinished_runs(self.root, artifact_type or "*")

    def leftovers(self, *, resumable: bool = False) -> list[Leftover]:
        """Return what killed processes left and nothing needs any more.

        With `resumable`, runs that `--resume` could go on from are counted, too.
        """
        return leftovers(self.root, resumable=resumable)

    def resolve(
        self,
        artifact_type: str,
        reference: str = "",
        run: str = "",
        *,
        choose: str = "",
        derived_from: Sequence[Artifact] = (),
    ) -> Artifact:
        """Find the artifact that is meant and check its files.

        Args:
            artifact_type: Type that is needed, or "" for any (then `reference` must say enough).
            reference: `name`, `name:v2`, `name:latest`, any of these after `type/`, or a
                path to an artifact directory. "" takes the newest.
            run: Keep only what has this name, or descends from a root of this name.
            choose: Hint that says how to name one of several unrelated ones; "" names the options
                of the stages.
            derived_from: The newest is looked for among what derives from all of these.

        Raises:
            ArtifactError: None, several of unrelated lineages, a damaged one, or one of another
                type.
        """
        if reference and _is_path(reference):
            artifact = Artifact.open(user_path(reference), artifact_type)
        elif reference:
            artifact = self._named(artifact_type, parse_reference(reference), run)
        else:
            artifact = self._newest(artifact_type, run, choose, derived_from)
        artifact.check()
        return artifact

    def inputs_of(self, artifact: Artifact) -> list[Artifact]:
        """Return the artifacts that `artifact` derives from directly, checked.

        Raises:
            ArtifactError: One is gone, changed or damaged.
        """
        found = lineage.parents(artifact, self.root)
        for item in found:
            item.check()
        return found

    def ancestors(
        self, artifact: Artifact, types: Collection[str] | None = None
    ) -> dict[str, Artifact]:
        """Return all artifacts that `artifact` derives from by type, checked.

        Args:
            artifact: Where to begin; not returned itself.
            types: Types that are needed, or None for all; others may be gone.

        Raises:
            ArtifactError: One is gone, changed or damaged, or two differ in one type.
        """
        found = lineage.ancestors(artifact, self.root, types)
        for item in found.values():
            item.check()
        return found

    def begin(
        self,
        artifact_type: str,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[Artifact] = (),
        resume: bool = False,
    ) -> RunInProgress:
        """Begin a run that makes an artifact, or resume an interrupted one.

        Args:
            artifact_type: Type of the artifact to make.
            name: Its name; it becomes the next version of it.
            config: Full configuration.
            inputs: The artifacts it derives from.
            resume: Go on with the newest unfinished run of the same configuration and inputs.

        Raises:
            ArtifactError: A bad name, inputs of different lineages, nothing to resume, or a
                workspace that cannot be written.
        """
        if encodable(str(self.root)) != str(self.root):
            raise ArtifactError(
                f"the path of the workspace {self.root} is no UTF-8 text; the libraries that write"
                " models and logs take no other",
                f"choose another with --workspace DIR or ${ROOT_VARIABLE}",
            )
        check_name(artifact_type)
        check_name(name)
        lineage.check_agreement(inputs, self.root)
        references = tuple(lineage.input_ref(item, self.root) for item in inputs)
        version = self._reserved.get((artifact_type, name), 0)
        return begin_run(
            self.root, artifact_type, name, config, references, resume=resume, version=version
        )

    def _inspected(self, artifact_type: str) -> tuple[list[Artifact], list[DamagedArtifact]]:
        """Return the versions whose manifest can be used, oldest first, and the others."""
        found = [_inspect(path) for path in _version_directories(self.root, artifact_type)]
        usable = sorted((item for item in found if isinstance(item, Artifact)), key=_age)
        return usable, [item for item in found if isinstance(item, DamagedArtifact)]

    def _named(self, artifact_type: str, wanted: Reference, run: str) -> Artifact:
        artifact_type = self._type_of(artifact_type, wanted)
        directories = _version_directories(self.root, artifact_type, wanted.name)
        versions = [version_of(path.name) for path in directories]
        if not versions:
            names = {path.parent.name for path in _version_directories(self.root, artifact_type)}
            raise ArtifactError(
                f"no finished {artifact_type} is called '{wanted.name}' in {self.root}",
                self._of_method(artifact_type, wanted.name)
                or did_you_mean(wanted.name, names)
                or how_to_make(artifact_type),
            )
        if wanted.version and wanted.version not in versions:
            raise ArtifactError(
                f"{artifact_type}/{wanted.name} has no version v{wanted.version} in {self.root}",
                "existing versions: " + ", ".join(f"v{version}" for version in versions),
            )
        folder = self.root / artifact_type / wanted.name
        found = _open_version(folder / version_directory(wanted.version or versions[-1]))
        roots = lineage.root_names(found, self.root)
        if run and run not in roots and run not in self._names(found):
            raise ArtifactError(
                f"{found.reference} does not belong to the run '{run}'",
                f"it descends from {', '.join(sorted(roots))}",
            )
        return found

    def _newest(
        self, artifact_type: str, run: str, choose: str, derived_from: Sequence[Artifact]
    ) -> Artifact:
        known: dict[str, frozenset[str]] = {}
        families: dict[frozenset[str], list[Artifact]] = {}
        candidates = self.artifacts(artifact_type)
        wanted = {item.digest: item.reference for item in derived_from}
        if wanted and candidates:
            # An input that is gone or was changed counts: finding another must not fail over it.
            traced = [(item, *lineage.trace([item], self.root)) for item in candidates]
            candidates = [item for item, found, lost in traced if wanted.keys() <= {*found, *lost}]
            if not candidates:
                raise ArtifactError(
                    f"no finished {artifact_type} in {self.root} derives from"
                    f" {' and '.join(wanted.values())}",
                    self._how_to_derive(artifact_type, derived_from),
                )
        for item in candidates:
            roots = lineage.root_names(item, self.root, known)
            if not run or run in roots or run in self._names(item):
                families.setdefault(roots, []).append(item)
        if not families:
            names = {item.name for item in candidates}.union(*known.values())
            raise self._nothing(artifact_type, run, names)
        if len(families) > 1:
            example = min(min(roots) for roots in families)
            hint = choose or (
                f"choose one with --run NAME (--run {example})"
                f" or name it with --{artifact_type} NAME"
            )
            raise ArtifactError(self._unrelated(artifact_type, families), hint)
        (family,) = families.values()
        newest = family[-1]
        # A damaged later version must not be passed over silently.
        last = _version_directories(self.root, newest.type, newest.name)[-1]
        if version_of(last.name) > newest.version:
            _open_version(last)
        return newest

    def _how_to_derive(self, artifact_type: str, sources: Sequence[Artifact]) -> str:
        """Return the hint that names the commands that lead from artifacts to one of a type.

        It begins at the source that is nearest to the type, and goes on from the newest artifacts.
        """
        missing, given = [artifact_type], {item.type: item for item in sources}
        while missing[0] in MADE_FROM and MADE_FROM[missing[0]] not in given:
            missing.insert(0, MADE_FROM[missing[0]])
        if missing[0] not in MADE_FROM:
            return how_to_make(artifact_type)
        nearest = given[MADE_FROM[missing[0]]]
        while len(missing) > 1:
            derived = (
                item
                for item in reversed(self.artifacts(missing[0]))
                if nearest.digest in lineage.trace([item], self.root)[0]
            )
            found = next(derived, None)
            if found is None:
                break
            nearest, missing = found, missing[1:]
        commands = [MAKERS[made] for made in missing]
        commands[0] += f" --{nearest.type} {nearest.reference}"
        return f"make one with: {', then '.join(commands)}"

    def _names(self, artifact: Artifact) -> set[str]:
        """Return the names of an artifact and of what it derives from, as far as it is there."""
        return {item.name for item in lineage.trace([artifact], self.root)[0].values()}

    def _type_of(self, artifact_type: str, wanted: Reference) -> str:
        if artifact_type and wanted.type and artifact_type != wanted.type:
            raise ArtifactError(
                f"'{wanted.type}/{wanted.name}' is of type '{wanted.type}', not '{artifact_type}'",
                f"name one of type '{artifact_type}'; {_LIST_HINT}",
            )
        if artifact_type or wanted.type:
            return artifact_type or wanted.type
        directories = _version_directories(self.root, name=wanted.name)
        types = sorted({path.parts[-3] for path in directories})
        if not types:
            raise ArtifactError(
                f"nothing is called '{wanted.name}' in {self.root}",
                self._of_method("", wanted.name) or _LIST_HINT,
            )
        if len(types) > 1:
            choices = ", ".join(f"{item}/{wanted.name}" for item in types)
            raise ArtifactError(
                f"artifacts of several types are called '{wanted.name}' in {self.root}",
                f"name one: {choices}",
            )
        return types[0]

    def _of_method(self, artifact_type: str, name: str) -> str:
        """Return a hint that names the newest artifact of a method, "" where there is none."""
        found = [item for item in self.artifacts(artifact_type) if item.method == name]
        return f"'{name}' is a method: its newest is {found[-1].reference}" if found else ""

    def _nothing(self, artifact_type: str, run: str, names: set[str]) -> ArtifactError:
        unusable = self.damaged(artifact_type)
        if unusable:
            hint = unusable[-1].hint or how_to_make(artifact_type)
            return ArtifactError(unusable[-1].reason, hint)
        if run and names:
            return ArtifactError(
                f"no finished {artifact_type} in {self.root} belongs to the run '{run}'",
                did_you_mean(run, names),
            )
        missing = "" if self.root.is_dir() else ": there is no such directory"
        return ArtifactError(
            f"no finished {artifact_type} in {self.root}{missing}", how_to_make(artifact_type)
        )

    def _unrelated(
        self, artifact_type: str, families: Mapping[frozenset[str], Sequence[Artifact]]
    ) -> str:
        listed = "; ".join(
            f"{items[-1].reference} (from {', '.join(sorted(roots))})"
            for roots, items in families.items()
        )
        return f"{self.root} has {artifact_type} artifacts of unrelated lineages: {listed}"


def _is_path(reference: str) -> bool:
    """Tell whether a reference is meant as a path to an artifact directory."""
    if reference.startswith((".", "~", os.sep)):
        return True
    return os.sep in reference and (Path(reference) / MANIFEST_NAME).is_file()


def _version_directories(root: Path, artifact_type: str = "", name: str = "") -> list[Path]:
    """Return the version directories below `root` by version; hidden ones are left out."""
    found = [
        path
        for path in matching(root, artifact_type or "*", name or "*", "v*")
        if not any(part.startswith(".") for part in path.parts[-3:])
        and version_of(path.name)
        and path.is_dir()
    ]
    return sorted(found, key=lambda path: (path.parent, version_of(path.name)))


def _inspect(path: Path) -> Artifact | DamagedArtifact:
    """Open a version directory, or return why it cannot be opened."""
    artifact_type, name = path.parts[-3:-1]
    reference = format_reference(artifact_type, name, version_of(path.name))
    try:
        artifact = Artifact.open(path, artifact_type)
    except ArtifactError as error:
        return DamagedArtifact(reference, path, error.message, error.hint)
    if artifact.reference != reference:
        reason = f"{path} was renamed: its manifest says {artifact.reference}"
        return DamagedArtifact(reference, path, reason)
    return artifact


def _open_version(path: Path) -> Artifact:
    entry = _inspect(path)
    if isinstance(entry, DamagedArtifact):
        hint = entry.hint or "make it again, or move the directory elsewhere"
        raise ArtifactError(entry.reason, hint)
    return entry


def _age(artifact: Artifact) -> tuple[str, str, int]:
    return str(artifact.manifest.provenance["finished"]), artifact.name, artifact.version


Place: TypeAlias = Workspace | str | Path | None
"""A workspace, or what names one; None takes `$LWDCTL_WORKSPACE`, else `./lwd-runs`."""
