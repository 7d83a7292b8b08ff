"""The model card: a README with the Hub's metadata, from what `lwdctl report` knows.

Texts of unknown origin stay texts: nothing in them becomes markup, a link or another line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lwdctl.analysis.comparison import Comparison, compare
from lwdctl.analysis.evaluations import SUCCESS, read_evaluation
from lwdctl.analysis.plotting import render
from lwdctl.analysis.report.content import CaptionedTable
from lwdctl.analysis.report.report import commit_of, describe_data, seconds_of, settings_of
from lwdctl.artifacts.artifact import Artifact
from lwdctl.artifacts.description import read_description
from lwdctl.artifacts.workspace import Workspace
from lwdctl.core.errors import LwdctlError
from lwdctl.core.plain_text import LONGEST, listed, plain_text, size_text
from lwdctl.core.progress import Progress
from lwdctl.core.records import SourceSpec
from lwdctl.methods import METHODS
from lwdctl.sharing.hub import Address
from lwdctl.sharing.plan import PushPlan

CARD = "README.md"
FIGURE = "success.png"
POLICIES = ("diffusion", "baseline")
TRAINED = ("vae", *POLICIES)
TEMPLATES = Path(__file__).parent / "templates"
_TAG = re.compile(r"[^a-z0-9.-]+")
_CAPTION = "Results over all tasks"


@dataclass(frozen=True)
class Card:
    """A model card: the text of README.md, and its figure as PNG (b"" for none)."""

    text: str
    figure: bytes


@dataclass(frozen=True)
class Results:
    """What an evaluation says of the artifact; `drawn` says what the figure (PNG) shows."""

    protocol: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    figure: bytes = b""
    drawn: str = ""


def build_card(plan: PushPlan, address: Address, root: Path, progress: Progress) -> Card:
    """Render the model card of what is to be pushed.

    Args:
        plan: What is to be pushed.
        address: Where it goes.
        root: The workspace, which holds the evaluations.
        progress: Where to report.

    Raises:
        ArtifactError: The description of the data is damaged.
    """
    main, snippets = plan.main, _of_type(plan, "snippets")
    spec = read_description(snippets.path) if snippets else None
    results = _results(plan, root, progress)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - `finalize` escapes for Markdown
        finalize=finish,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md").render(
        metadata=Raw(_metadata(plan, spec, snippets)),
        title=address.repository.partition("/")[2],
        lead=_lead(main, spec),
        facts=list(_facts(plan, spec, snippets)),
        commands=[code_line(line) for line in _commands(main, address)],
        python=[code_line(line) for line in _python(main, spec, address)],
        trust=_trust(spec),
        results=results,
        has_figure=bool(results and results.figure),
        figure=Raw(FIGURE),
        made=list(_made(plan)),
        recorded=[code_line(line) for line in _recorded(plan)],
        settings=[
            (item.reference, settings_of(item))
            for item in plan.artifacts.values()
            if item.type in TRAINED
        ],
        files=_files(plan),
        missing=[f"Not shared, as it is gone: {why}" for why in plan.gone],
        table=table,
    )
    return Card(text, results.figure if results else b"")


def _of_type(plan: PushPlan, artifact_type: str) -> Artifact | None:
    found = [item for item in plan.artifacts.values() if item.type == artifact_type]
    return found[-1] if found else None


def method_of(artifact: Artifact) -> str:
    """Return the name of the method of a policy, "" for what is none."""
    if artifact.type not in POLICIES:
        return ""
    return str(artifact.manifest.config.get("method", "lwd"))


def _metadata(plan: PushPlan, spec: SourceSpec | None, snippets: Artifact | None) -> str:
    """Return the YAML of the card; the Hub's library quotes what needs it."""
    from huggingface_hub import ModelCardData

    method = method_of(plan.main)
    names = ["lwdctl", "imitation-learning", method, spec.env.adapter if spec else ""]
    tags = [_TAG.sub("-", name.lower())[:60].strip("-.") for name in names]
    data = ModelCardData(
        license=plan.shared.license,
        library_name="lwdctl",
        pipeline_tag="robotics",
        tags=list(dict.fromkeys(filter(None, tags))),
        datasets=sorted(set(_datasets(snippets))) or None,
    )
    return data.to_yaml()


def _datasets(snippets: Artifact | None) -> Iterator[str]:
    """Yield the data sets of the Hub that `lwdctl download lerobot` fetched for the artifact."""
    for source in snippets.manifest.summary.get("sources", []) if snippets else ():
        path = Path(str(source.get("path", "")))
        # Its record of digests stands beside the folder USER/NAME.
        if len(path.parts) > 2 and path.with_name(f"{path.name}.sha256").is_file():
            name = "/".join(path.parts[-2:])
            if path.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
                yield name


def _lead(main: Artifact, spec: SourceSpec | None) -> str:
    method = method_of(main)
    row = METHODS.all_rows().get(method)
    what = (
        f"A policy ({row.summary if row else method}) trained with"
        if method
        else (f"An artifact of the type {main.type}, made with")
    )
    where = f" for {spec.env.adapter}" if spec and spec.env.adapter else ""
    tasks = f": {listed(spec.env.tasks)}" if spec and spec.env.tasks else ""
    return f"{what} lwdctl{where}{tasks}."


def _facts(
    plan: PushPlan, spec: SourceSpec | None, snippets: Artifact | None
) -> Iterator[tuple[str, str]]:
    if spec:
        yield "Environment", spec.env.adapter or "not named"
        yield f"Tasks ({len(spec.env.tasks)})", listed(spec.env.tasks, 12) or "not named"
        if spec.labels:
            yield "Labels of behavior", listed(spec.labels, 12)
        seen = (f"{item.name} ({item.size})" for item in spec.observations if item.network)
        yield "Observations", listed(seen, 12)
        rate = f", {spec.action.control_rate:g} Hz" if spec.action.control_rate else ""
        kind = plain_text(f"{spec.action.semantics}, {spec.action.units}", 100)
        yield "Action", f"{spec.action.size} components ({kind}){rate}"
    if snippets:
        yield "Data", describe_data(snippets.manifest.summary)
    yield "License", plan.shared.license
    yield "Artifact", f"{plan.shared.artifact}, pushed by lwdctl {plan.shared.lwdctl}"


def _commands(main: Artifact, address: Address) -> Iterator[str]:
    yield f"lwdctl pull {address.repository}"
    own = f"{main.name}:v{main.version}"
    use = {
        "diffusion": f"lwdctl eval --diffusion {own} --latent sampled",
        "baseline": f"lwdctl eval --policy {method_of(main)} --baseline {own}",
        "evaluation": f"lwdctl report {own}",
    }
    yield use.get(main.type, f"lwdctl show {main.reference}")


def _python(main: Artifact, spec: SourceSpec | None, address: Address) -> Iterator[str]:
    if main.type not in POLICIES:
        return
    yield "import lwdctl"
    yield ""
    yield f'policy = lwdctl.load_policy("hf:{address.repository}")'
    given = (("task", spec.env.tasks), ("label", spec.labels)) if spec else ()
    named = "".join(f", {part}={names[0]!r}" for part, names in given if len(names) > 1)
    yield f"policy.reset(seed=0{named})"
    keys = [item for item in spec.observations if item.network] if spec else []
    seen = ", ".join(f"{item.name!r}: {item.size} numbers" for item in keys)
    yield f"action = policy.act(observation)  # a dict {{{seen}}}"


def _trust(spec: SourceSpec | None) -> str:
    if not spec or ":" not in spec.env.adapter:
        return ""
    return (
        f"The environment {spec.env.adapter} is no part of lwdctl. Evaluating in it imports that"
        " module: look at it first, then add --trust with its name."
    )


def _results(plan: PushPlan, root: Path, progress: Progress) -> Results | None:
    """Return what the newest evaluation of the artifact says of it."""
    evaluation = _evaluation(plan.main, root)
    if evaluation is None:
        return None
    protocol = str(evaluation.manifest.summary.get("protocol") or "")
    try:
        runs = read_evaluation(evaluation, root)
        if evaluation.digest != plan.main.digest:  # without the other models of a grid
            runs = [run for run in runs if {*run.models.values()} <= {*plan.artifacts}]
        comparison = compare(runs, None, None, progress)
    except LwdctlError as error:
        return Results(protocol, "No table", (), (), (error.message,))
    rows = CaptionedTable(comparison.table.columns, comparison.table.rows).without_empty_columns()
    return Results(
        protocol, _CAPTION, rows.columns, rows.rows,
        (f"From {evaluation.reference}, {str(evaluation.manifest.provenance['finished'])[:10]}.",),
        *_figure(comparison),
    )  # fmt: skip


def _evaluation(main: Artifact, root: Path) -> Artifact | None:
    if main.type == "evaluation":
        return main
    found = [
        item
        for item in Workspace(root).artifacts("evaluation")
        if main.digest in {one.digest for one in item.manifest.inputs}
    ]
    return found[-1] if found and main.type in POLICIES else None


def _figure(comparison: Comparison) -> tuple[bytes, str]:
    """Return the figure of success, or of the score where nothing was solved, and its caption."""
    solved = any(row.successes for row in comparison.overall)
    quantity = SUCCESS if solved else comparison.metric
    figure = comparison.figures.get(f"{quantity}-by-horizon")
    if figure is None:
        return b"", ""
    name = quantity.replace("_", " ").capitalize()
    return render(figure, "png"), f"{name} against the action horizon, with 95 % intervals"


def _made(plan: PushPlan) -> Iterator[str]:
    for item in plan.artifacts.values():
        made: Mapping[str, Any] = item.manifest.provenance
        stage = made.get("stage") or "a call of the library"
        yield (
            f"{item.reference}: {stage}, {str(made['finished'])[:10]}, {seconds_of(item)} on"
            f" {made.get('device') or 'an unknown device'}; lwdctl {made.get('lwdctl', 'unknown')},"
            f" commit {commit_of(item)}"
        )


def _recorded(plan: PushPlan) -> Iterator[str]:
    """Yield the commands that made the artifacts, each once."""
    commands = (item.manifest.provenance.get("command") for item in plan.artifacts.values())
    yield from dict.fromkeys(str(command) for command in commands if command)


def _files(plan: PushPlan) -> CaptionedTable:
    rows = []
    for item in plan.shared.artifacts:
        left = f"{size_text(item.left_out_size)}: {listed(item.left_out_names, 4)}"
        count = f"{len(item.files)} file{'s' * (len(item.files) > 1)}"
        rows.append((
            item.reference, f"{count}, {size_text(item.size)}",
            left if item.left_out else "nothing", item.digest[:16],
        ))  # fmt: skip
    columns = ("artifact", "here", "left out", "SHA-256 of its manifest begins")
    return CaptionedTable(columns, tuple(rows))


_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|!&~$^@]|:(?=/|[\w+-]+:))")
_WEB = re.compile(r"(?i)(www)\.")
_LIST = re.compile(r"^(\d*)([.)](?=\s|$)|(?<!\d)[-+=])")


class Raw(str):
    """Markdown that is not escaped: made here, of parts that are."""

    __slots__ = ()


def escape(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line of Markdown that shows exactly its characters."""
    shown = _MARKUP.sub(r"\\\1", plain_text(text, longest).strip())
    return _LIST.sub(r"\1\\\2", _WEB.sub(r"\1\\.", shown))


def finish(value: object) -> str:
    """Return what a template shows for a value: escaped, unless it is `Raw`."""
    return value if isinstance(value, Raw) else escape(str(value))


def code_line(text: str) -> Raw:
    """Return a text as one line of a fenced block, which no text can end."""
    return Raw(plain_text(text).replace("```", "` ` `").replace("~~~", "~ ~ ~"))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Raw:
    """Return a Markdown table with escaped cells."""
    lines = [[escape(cell) for cell in line] for line in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return Raw("\n".join(f"| {' | '.join(line)} |" for line in lines))
