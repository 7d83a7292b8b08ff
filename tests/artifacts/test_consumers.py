"""Every command that takes an artifact, with every kind of artifact that somebody else changed.

`ROWS` says what each command reads. A command that is added has to be put there, or into
`NO_ARTIFACT` with the reason.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lwdctl.analysis.sections import Findings, Section
from lwdctl.analysis.tables import Table
from lwdctl.artifacts.manifest import MANIFEST_NAME
from lwdctl.artifacts.workspace import Workspace
from lwdctl.cli.commands import COMMANDS
from lwdctl.cli.export import FORMATS
from lwdctl.cli.main import main
from lwdctl.stages import STAGES

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
import toy_chain
from evaluation_grid import episode, record
from foreign import sign_all

for _ in range(3):
    sys.path.pop(0)

SMALL = ("snippets", "vae", "latents", "diffusion", "evaluation", "analysis")
DATA, MODEL = SMALL[:1], ("vae", "latents", "diffusion")


@dataclass(frozen=True)
class Row:
    """A command line, and the types of the artifacts whose content it reads.

    Attributes:
        line: The words after `lwdctl`.
        reads: Types whose damage must end it with one error line.
        may_read: Types that it reads for some settings or passes over where they are damaged.
    """

    line: str
    reads: tuple[str, ...] = ()
    may_read: tuple[str, ...] = ()


SIMULATED = "--episodes 2 --max-steps 3 --workers 0"
ROWS = {
    "ingest": Row("ingest", (), ("demonstrations",)),
    "train-vae": Row(
        "train-vae --updates 2 --snippet-length 4 --policy-width 4 --decoder xs", DATA
    ),
    "encode": Row("encode", ("snippets", "vae")),
    "train-diffusion": Row("train-diffusion --updates 2", ("snippets", "latents"), ("vae",)),
    "train-baseline": Row("train-baseline mlp --updates 2", DATA),
    "eval": Row(f"eval {SIMULATED}", ("snippets", "diffusion"), MODEL),
    "analyze latents": Row("analyze latents --points 8", ("snippets", "latents"), ("vae",)),
    "analyze behavior": Row("analyze behavior", ("evaluation",), DATA),
    "analyze diversity": Row("analyze diversity --count 4 --workers 0", DATA, MODEL),
    "analyze reconstruction": Row("analyze reconstruction --count 2 --workers 0", DATA, MODEL),
    "analyze convergence": Row(f"analyze convergence {SIMULATED}", ("diffusion",), SMALL),
    "list": Row("list", (), SMALL),
    "show": Row("show snippets", (), SMALL),
    "lineage": Row("lineage evaluation/made", (), SMALL),
    "verify": Row("verify", SMALL),
    "verify --deep": Row("verify --deep", SMALL),
    "gc": Row("gc", (), SMALL),
    "compare": Row("compare --output compared", ("evaluation",), SMALL),
    "report": Row("report --output report.html", (), SMALL),
    "export policy": Row("export policy --output exported", ("diffusion", "snippets"), MODEL),
    "export minari": Row("export minari --id a/b/c-v0 --task push --output minari", DATA),
    "export lerobot": Row("export lerobot toy lerobot", DATA),
    "push": Row("push diffusion/toy somebody/model --dry-run --license mit", (), SMALL),
    "track": Row("track evaluation/made --to tensorboard", (), SMALL),
}
NO_ARTIFACT = {
    "collect": "records demonstrations in a simulator",
    "run": "runs stages, which are rows above",
    "status": "compares manifests, as `list` does",
    "inspect": "reads data files, see tests/data",
    "download": "fetches data files",
    "pull": "fetches artifacts, see tests/sharing",
    "doctor": "checks the machine",
    "bench": "measures made-up data",
}


def test_every_command_has_a_row():
    known = {name for name in COMMANDS if name != "export"} | {*STAGES}
    known |= {f"export {name}" for name in FORMATS}
    assert known == {*ROWS} - {"verify --deep"} | {*NO_ARTIFACT}
    assert not {*ROWS} & {*NO_ARTIFACT}


HOSTILE = "\x1b[2J\u202ea\nerror: forged"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A whole lineage, whose data name a module and a task with control characters."""
    root = tmp_path_factory.mktemp("chain") / "runs"
    source, names = toy_chain.SOURCE, ("push", HOSTILE)
    env = replace(source.env, adapter="somebodys_module:Robot", tasks=names)
    toy_chain.SOURCE = replace(source, env=env, labels=("slow", HOSTILE))
    try:
        made = toy_chain.publish_chain(root, toy_chain.TOY)
    finally:
        toy_chain.SOURCE = source
    workspace = Workspace(root)
    config = {"max_steps": 0, "perturbation_probability": 0.1}
    records = [
        record(policy, [episode(n, n % 2, 0.5, HOSTILE) for n in range(4)], latent="")
        for policy in ("lwd", "random")
    ]
    inputs = [made["diffusion"]]
    with workspace.begin("evaluation", "made", config=config, inputs=inputs) as draft:
        (draft.path / "episodes").mkdir()
        for number, item in enumerate(records):
            (draft.path / f"episodes/{number}.json").write_text(json.dumps(item))
        draft.publish({"results": [row for item in records for row in item["results"]]})
    with workspace.begin("analysis", "made", config={}, inputs=[made["latents"]]) as draft:
        Findings("Title", (Section("One", "text", table=Table(("a",), ((1,),))),)).save(
            draft.path, HOSTILE
        )
        draft.publish({})
    return root


@pytest.fixture
def root(chain, tmp_path, monkeypatch):
    place = tmp_path / "here"
    place.mkdir()
    (place / "outside").mkdir()
    shutil.copytree(chain, place / "runs")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "somebodys_module.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'imported')!r})\n"
    )
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setenv("LWDCTL_WORKSPACE", str(place / "runs"))
    monkeypatch.chdir(place)
    yield place / "runs"
    assert not (tmp_path / "imported").exists(), "stored data chose a module"
    assert {path.name for path in tmp_path.iterdir()} <= {"here", "modules"}


def payload(root: Path, kind: str) -> Path:
    """Return a file of an artifact that its consumers read."""
    folder = next(root.glob(f"{kind}/*/v*"))
    every = [path for path in folder.rglob("*") if path.is_file()]
    found = [path for path in every if path.name != MANIFEST_NAME] or every
    wanted = ("zarr.json", "model.json", "analysis.json", ".json")
    return min(found, key=lambda path: (
        next((n for n, end in enumerate(wanted) if path.name.endswith(end)), 9), str(path)
    ))  # fmt: skip


def linked(path: Path, outside: Path) -> None:
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)


def piped(path: Path, outside: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path, outside: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def garbled(path: Path, outside: Path) -> None:
    path.write_bytes(b"[" * 50_000)


def flipped(path: Path, outside: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def manifest_piped(path: Path, outside: Path) -> None:
    piped(manifest_of(path), outside)


def manifest_garbled(path: Path, outside: Path) -> None:
    garbled(manifest_of(path), outside)


def manifest_linked(path: Path, outside: Path) -> None:
    device(manifest_of(path), outside)


def manifest_of(path: Path) -> Path:
    folders = (path, *path.parents)
    return next(item / MANIFEST_NAME for item in folders if item.name.startswith("v0"))


CHANGES = {
    change.__name__: change
    for change in (
        linked, piped, device, garbled, flipped, manifest_piped, manifest_garbled, manifest_linked,
    )
}  # fmt: skip
SIGNED = ("garbled",)
"""Changes whose digests are made to fit."""
BY_DIGEST = {("verify", kind) for kind in SMALL if kind != "snippets"}
"""What is compared with its digest only; `verify --deep` reads it."""


def run(name: str, capfd) -> tuple[int, str]:
    """Run a command; check that it says one error at most, without characters that act."""
    code = main([*ROWS[name].line.split(), "-q"])
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert code in {0, 1}, err
    assert len(lines) <= 2, err
    assert code == 0 or lines[0].startswith("error: "), err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out + err)
    assert not any(line.startswith("error: forged") for line in (out + err).splitlines())
    return code, err


SOON = {
    ("snippets", "flipped", "export lerobot"), ("vae", "linked", "encode"),
    ("diffusion", "piped", "eval"), ("evaluation", "garbled", "compare"),
    ("analysis", "device", "verify"), ("latents", "manifest_piped", "list"),
}  # fmt: skip
"""What the default run has of the table."""


def table():
    """Yield every change of every type with every command."""
    for key in itertools.product(SMALL, CHANGES, ROWS):
        if key[0] != "latents" or key[1].startswith("manifest"):  # the toy's have no other file
            yield pytest.param(*key, marks=() if key in SOON else pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "change", "name"), list(table()))
@pytest.mark.timeout(60)
def test_a_changed_artifact_is_refused_by_what_reads_it(root, capfd, kind, change, name):
    """One line, whatever was changed; nothing is waited for, imported or opened outside."""
    CHANGES[change](payload(root, kind), root.parent / "outside")
    if change in SIGNED:
        sign_all(root)
    code, _ = run(name, capfd)
    if kind in ROWS[name].reads:
        assert code == (0 if change in SIGNED and (name, kind) in BY_DIGEST else 1)


def names():
    """Yield every command; those that simulate or draw for seconds are long."""
    for name in ROWS:
        heavy = name in ("export policy", "compare", "report", "track") or "analyze" in name
        yield pytest.param(name, marks=pytest.mark.long if heavy else ())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(names()))
def test_names_of_an_artifact_act_nowhere(root, capfd, name):
    """Tasks, labels and titles with control characters; a module that nobody trusts."""
    run(name, capfd)
