"""The page of `lwdctl inspect` in Chromium, at the width of a desk and of a phone."""

import h5py
import numpy as np
import pytest

from lwdctl.analysis.report.inspection import data_pictures, render_inspections
from lwdctl.configs import IngestConfig
from lwdctl.data.inspection import inspect_files

EXAMPLE = (
    "Actions of one episode (demo_0) over time: a motion is the slope of its observation, a target"
    " comes before it"
)


def write(path, name, components=7, length=60):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(30):
            demo = file.create_group(f"data/demo_{index}")
            demo.attrs["operator"] = f"{name} {'operator' * 9} {index}"
            demo.attrs["task"] = f"put the {name} $5 bowl & the <plate> " + "very " * 90
            position = np.cumsum(rng.uniform(-0.9, 0.9, (length + 1, components)), axis=0)
            demo[f"obs/{name}_{'position' * 12}"] = position[:-1]
            demo["actions"] = np.diff(position, axis=0)
            demo["rewards"] = rng.normal(size=length)
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder with a long name that does not break anywhere")
    paths = [write(folder / f"{'x' * 120}{i}.hdf5", "grün", components) for i, components in
             enumerate((7, 40))]  # fmt: skip
    (folder / "notes.txt").write_text("no data")
    file = folder / "page.html"
    file.write_text(render_inspections(inspect_files([*paths, file.with_name("notes.txt")],
                                                     IngestConfig())))  # fmt: skip
    return file


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders_alone_and_fits(opened, page, width):
    with opened(page, width) as (tab, said):
        boxes = tab.evaluate("[...document.images].map(i => [i.naturalWidth, i.clientWidth])")
        assert len(boxes) == 8
        assert min(natural for natural, _ in boxes) > 0
        assert max(shown for _, shown in boxes) <= width
        text = tab.inner_text("body")
        assert "put the grün $5 bowl & the <plate>" in text
        assert "30 with 1,800 steps" in text
        assert "Not one store:" in text
        assert tab.evaluate("document.querySelectorAll('h1').length") == 1
    assert said == []


@pytest.mark.slow
def test_plots_show_what_they_can_and_say_what_they_leave_out(tmp_path):
    path = write(tmp_path / "many.hdf5", "arm", components=40, length=30)
    found = inspect_files([path], IngestConfig(max_steps=1000)).files[0]
    captions = [item.caption for item in data_pictures(found.statistics)]
    assert captions == [
        "Episode lengths; the step limit of 1,000 lies outside the plot",
        "Returns per label: range and median; 10 more labels are in the table",
        "Recorded actions beside their limits; 8 more components are not drawn",
        EXAMPLE + "; 32 more components are not drawn",
    ]
    assert list(data_pictures({})) == []
