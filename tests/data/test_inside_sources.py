"""Files of a source that are none: pipes, devices, links that lead nowhere, directories."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SAMPLES

sys.path.pop(0)

from lwdctl.configs import IngestConfig
from lwdctl.core.errors import DataError
from lwdctl.data.formats import READERS
from lwdctl.data.inspection import inspect_file
from lwdctl.data.reader import open_source, recognize

ODD: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere/x"),
    "folder": Path.mkdir,
    "empty": Path.touch,
}
SOON = {"pipe", "loop"}


@pytest.mark.timeout(90)  # one that is waited for has no end
@pytest.mark.parametrize(
    "odd", [pytest.param(kind, marks=() if kind in SOON else pytest.mark.long) for kind in ODD]
)
@pytest.mark.parametrize("name", list(READERS))
def test_what_lies_in_the_place_of_a_file_is_not_waited_for(tmp_path, name, odd):
    """Whatever asks for it: an answer where the file is not needed, or one line."""
    whole = tmp_path / "whole"
    whole.mkdir()
    sample = SAMPLES[name](whole)
    for number, file in enumerate(sorted(filter(Path.is_file, whole.rglob("*")))[:12]):
        copy = shutil.copytree(whole, tmp_path / str(number))
        place, source = copy / file.relative_to(whole), copy / sample.path.relative_to(whole)
        place.unlink()
        ODD[odd](place)
        errors = [
            error_of(open_everything, name, source, sample.options),
            error_of(recognize, source),
            error_of(inspect_file, source, IngestConfig()),
        ]
        assert all("\n" not in text and (not text or str(copy) in text) for text in errors), errors
        shutil.rmtree(copy)


def error_of(use: Callable[..., object], *words: object) -> str:
    try:
        use(*words)
    except DataError as error:
        return error.message
    return ""


def open_everything(name: str, path: Path, options: dict) -> None:
    with open_source(name, (path,), IngestConfig(**options)) as reader:
        for index in range(len(reader.episodes)):
            reader.read(index)
