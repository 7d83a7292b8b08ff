"""Pictures and names of others in figures and reports."""

import zlib

import pytest

from lwdctl.analysis.plotting import new_figure, render
from lwdctl.analysis.report.content import MOST_PIXELS, embed_png, embed_stills
from lwdctl.core.errors import DataError


def png(width, height):
    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("embed", [embed_png, embed_stills])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "is no picture"),
        (b"", "is no picture"),
        (png(60_000, 60_000), "is no picture|pixels"),
        (png(2**13, MOST_PIXELS // 2**13 + 1), "pixels, more than"),
        (b"GIF89a" + bytes(100), "is no picture"),
    ],
)
def test_bombs_and_broken_pictures_are_refused(embed, content, message, tmp_path):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=message):
        embed(tmp_path, "x.png", "a picture")


def test_a_cut_picture_is_refused_where_it_is_decoded(tmp_path):
    (tmp_path / "x.png").write_bytes(png(100, 100))
    with pytest.raises(DataError, match="is damaged"):
        embed_stills(tmp_path, "x.png", "stills")


@pytest.mark.slow
@pytest.mark.parametrize("name", [r"$\frac{$", "a $ b $", r"$\undefined$", "a" * 5000, "名\n\t"])
def test_names_are_drawn_as_they_are_written(name):
    figure, ((axes,),) = new_figure(3, 2)
    axes.plot([1, 10], [1, 1000], label=name)
    axes.set_title(name[:100])
    axes.set_xlabel(name[:100])
    axes.set_yscale("log")
    axes.legend()
    assert render(figure, "png").startswith(b"\x89PNG")
