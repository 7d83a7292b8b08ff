"""A child process that gives files of random structure to their readers; see `test_structure`.

`python structure.py FOLDER KIND COUNT` takes a valid file, changes a few of its values (another
type, huge, deep, hostile; removed, renamed, added, doubled), describes the changed file in the
manifest, so that digests do not stop it, and has it read. The last line printed is JSON.
"""

from __future__ import annotations

import copy
import faulthandler
import hashlib
import itertools
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

SECONDS = 20
LINES = 2
ODD = [
    None, True, False, 0, -1, 1, 3, 10**6, 10**9, 10**18, 2**63, 2**64, 0.5, -1.5, 1e308, 1e-320,
    "", "x", "all", "none", "nan", "../../etc/passwd", "/dev/zero", "a\0b", "\x1b[2J", "a\nb",
    "$\\frac{", "os:system", "v" * 5000, [], {}, [[]], [None], [1, "x"], {"": 1}, {"x": {"y": []}},
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
)
ACTIONS = ("replace", "replace", "replace", "remove", "rename", "add", "double", "nest", "copy")
CHANGES = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 10**6), st.integers(0, 10**6), VALUES),
    min_size=1, max_size=3,
)  # fmt: skip
TEXTS = {
    "as it is": lambda text: text,
    "cut": lambda text: text[: len(text) // 2],
    "twice": lambda text: text + text,
    "marked": lambda text: b"\xef\xbb\xbf" + text,
    "no UTF-8": lambda text: text.replace(b'"', b'"\xff', 1),
    "NUL": lambda text: text.replace(b"1", b"\0", 1),
    "digits": lambda text: text.replace(b"1", b"9" * 5000, 1),
    "NaN": lambda text: text.replace(b"1", b"NaN", 1),
    "half": lambda text: text.replace(b'"', b'"\\ud800', 1),
    "key twice": lambda text: text.replace(b"{", b'{"type": 1, "type": 2, ', 1),
    "deep": lambda text: b"[" * 3000 + text + b"]" * 3000,
}  # fmt: skip
TEXT = st.sampled_from(["as it is"] * 12 + list(TEXTS))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def changed(value: Any, changes: list[tuple[str, int, int, Any]]) -> Any:
    """Return a value in which a few places are changed."""
    whole = [copy.deepcopy(value)]
    for action, first, second, drawn in changes:
        new, every = copy.deepcopy(drawn), places(whole)  # a change may go into an earlier one
        box, key = every[first % len(every)]
        other, other_key = every[second % len(every)]
        if action == "replace":
            box[key] = new
        elif action == "copy":
            box[key] = copy.deepcopy(other[other_key])
        elif action == "nest":
            box[key] = [box[key]]
        elif action == "double" and isinstance(box[key], list):
            box[key] = box[key] + box[key]
        elif action == "remove" and box is not whole:
            del box[key]
        elif isinstance(box, dict) and action in {"rename", "add"}:
            box[str(new)[:40]] = box.pop(key) if action == "rename" else new
    return whole[0]


def sign(root: Path) -> None:
    """Make sizes and digests of all manifests right again, from the first artifact to the last."""
    digests: dict[str, str] = {}
    for path in sorted(root.glob("*/*/v*/manifest.json"), key=_order):
        body = json.loads(path.read_bytes())
        for file in body["files"]:
            content = (path.parent / file["path"]).read_bytes()
            file |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        before = hashlib.sha256(path.read_bytes()).hexdigest()
        for item in body["inputs"]:
            item["digest"] = digests.get(item["digest"], item["digest"])
        seal(path, body)
        digests[before] = hashlib.sha256(path.read_bytes()).hexdigest()


def _order(path: Path) -> str:
    return str(json.loads(path.read_bytes())["provenance"]["finished"])


def seal(path: Path, body: Any) -> None:
    """Write a manifest with the digest of its content, where it can have one."""
    if isinstance(body, dict):
        rest = {key: value for key, value in body.items() if key != "digest"}
        text = json.dumps(rest, indent=1, ensure_ascii=False) + "\n"
        body = {**rest, "digest": hashlib.sha256(text.encode(errors="replace")).hexdigest()}
    text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    path.write_bytes(text.encode(errors="replace"))


def commands(*lines: str) -> Callable[[int], int]:
    """Return a reader that runs one of some commands on the workspace."""

    def read(turn: int) -> int:
        from lwdctl.cli.main import main

        return main(lines[turn % len(lines)].split())

    return read


def library(read: Callable[[], Any]) -> Callable[[int], int]:
    """Return a reader that calls the library as a command does, and reports what it raises."""

    def run(turn: int) -> int:
        from lwdctl.cli.failures import report

        try:
            read()
        except Exception as error:  # noqa: BLE001 - what a command reports
            return report(error, ["eval"])
        return 0

    return run


def model(folder: Path, name: str) -> Callable[[], Any]:
    """Return a function that opens a saved model and, if it is a policy, acts once."""

    def read() -> None:
        import torch

        from lwdctl.methods.method import Acting
        from lwdctl.methods.trained import LoadedPolicy, open_directory
        from lwdctl.models.diffusion import LatentDiffusion
        from lwdctl.models.files import saved_method
        from lwdctl.models.vae import PolicyVae

        if name in {"vae", "diffusion"}:
            (PolicyVae if name == "vae" else LatentDiffusion).load(folder)
            return
        trained = open_directory(saved_method(folder), folder, torch.device("cpu"))
        policy = LoadedPolicy(trained, Acting(), name)
        tasks, labels = (
            names[:1] if part in trained.condition else ("",)
            for part, names in (("task", policy.tasks), ("label", policy.source.labels))
        )
        policy.reset(0, *tasks, *labels)
        sizes = policy.source.sizes(policy.observation_keys)
        policy.act({k: [0.0] * n for k, n in zip(policy.observation_keys, sizes, strict=True)})

    return read


def exported(folder: Path) -> Callable[[], Any]:
    """Return a function that reads the description of an exported policy."""

    def read() -> None:
        from lwdctl.deploy.runtime import PolicyDescription

        PolicyDescription.read(folder)

    return read


def target(folder: Path, kind: str) -> tuple[Path, Callable[[int], int]]:
    """Return the file of a kind, and what reads it."""
    runs = folder / "runs"
    if kind in {"vae", "diffusion", "mlp", "dp"}:
        return folder / kind / "model.json", library(model(folder / kind, kind))
    if kind == "policy":
        return folder / "policy" / "policy.json", library(exported(folder / "policy"))
    if kind == "recipe":
        return folder / "recipe.json", commands(f"run {folder / 'recipe.toml'} --dry-run -q")
    report = f"report --output {folder / 'report.html'} -q"
    patterns = {
        # Most of what reads manifests is quick; every tenth turn is not.
        "manifest": (
            "*/*/v*/manifest.json",
            (
                *("list", "verify -q", "show vae", "lineage vae") * 2,
                "list",
                report,
                *("list", "verify -q", "show vae", "gc") * 2,
                "list",
                "compare -q",
            ),
        ),
        "episodes": ("evaluation/*/v*/episodes/*.json", (report, "compare -q")),
        "analysis": ("analysis/*/v*/analysis.json", (report,)),
        "metrics": ("vae/*/v*/metrics.jsonl", (report,)),
        "run": ("vae/*/.partial-*/run.json", ("list", "gc")),
    }
    pattern, lines = patterns[kind]
    return min(runs.glob(pattern)), commands(*lines)


def write(path: Path, kind: str, value: Any, mode: str) -> None:
    """Write the changed value where its reader finds it."""
    if kind == "metrics":
        text = "\n".join(json.dumps(row) for row in value) if isinstance(value, list) else "1"
        path.write_bytes(TEXTS[mode](text.encode(errors="replace")))
    elif kind == "recipe":
        path.with_suffix(".toml").write_bytes(TEXTS[mode](toml(value).encode(errors="replace")))
        return
    elif kind == "manifest":
        seal(path, value)
        path.write_bytes(TEXTS[mode](path.read_bytes()))
        return
    else:
        path.write_bytes(TEXTS[mode](json.dumps(value).encode(errors="replace")))
    if kind in {"episodes", "analysis", "metrics"}:
        sign(path.parents[3] if kind != "episodes" else path.parents[4])


def toml(value: Any) -> str:
    """Return JSON as TOML: keys of the whole as lines of inline tables."""
    if not isinstance(value, dict):
        return f"x = {inline(value)}"
    return "\n".join(f"{json.dumps(key)} = {inline(item)}" for key, item in value.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        items = (f"{json.dumps(key)} = {inline(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return "nan" if value is None else json.dumps(value)


def draw_seldom() -> None:
    """Draw every tenth figure and resample little: a report would take seconds."""
    from lwdctl.analysis import plotting, resample
    from lwdctl.analysis.report import content

    resample.RESAMPLES = resample.PERMUTATIONS = 99
    render, drawn = plotting.render, itertools.count()

    def seldom(figure: Any, file_format: str) -> bytes:
        if next(drawn) % 10 == 0:
            return render(figure, file_format)
        return b'<svg xmlns="http://www.w3.org/2000/svg"/>'

    plotting.render = content.render = seldom


def main(folder: Path, kind: str, count: int) -> dict[str, Any]:
    path, read = target(folder, kind)
    content = path.read_bytes()
    values = (
        [json.loads(line) for line in content.splitlines()]
        if kind == "metrics"
        else json.loads(content)
    )
    manifests = {item: item.read_bytes() for item in (folder / "runs").glob("*/*/v*/manifest.json")}
    counted = {"notes": 0}
    if kind == "manifest":
        every = sorted(manifests)
        path, values = every[0], {str(item): json.loads(manifests[item]) for item in every}

    def notes_name(file: str) -> bool:
        """Tell whether a report says of a file that it is left out."""
        page = folder / "report.html"
        return page.exists() and file in page.read_text()

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(CHANGES, TEXT, st.integers(0, 100))
    def reads(changes: Any, mode: str, turn: int) -> None:
        chosen, value = path, values
        if kind == "manifest":
            chosen = sorted(manifests)[turn % len(manifests)]
            value = values[str(chosen)]
        try:
            write(chosen, kind, changed(value, changes), mode)
            with tempfile.TemporaryFile() as errors:
                code = _captured(lambda: read(turn), errors)
                errors.seek(0)
                text = errors.read().decode(errors="replace")
        finally:
            path.write_bytes(content)
            for item, before in manifests.items():
                item.write_bytes(before)
        counted[str(code)] = counted.get(str(code), 0) + 1
        lines = [line for line in text.splitlines() if not line.startswith("note:")]
        counted["notes"] += notes_name(path.name)
        assert code in {0, 1, 2}, text
        assert len(lines) <= LINES, text
        assert code == 0 or lines[0].startswith("error: "), text

    draw_seldom()
    if kind == "recipe":
        write(path, kind, values, "as it is")
    with tempfile.TemporaryFile() as errors:
        unchanged = _captured(lambda: read(0), errors)
    assert unchanged == 0, "the unchanged file is not read"
    assert not notes_name(path.name)
    reads()
    # Not getrusage: its peak begins with that of the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return {"counted": counted, "peak": peak}


def _captured(read: Callable[[], int], errors: Any) -> int:
    kept = os.dup(1), os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(errors.fileno(), 2)
            # Not an alarm, which commands use themselves and which ends no loop in C.
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=kept[1])
            return read()
    finally:
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[4]),) * 2)
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))  # noqa: T201
