"""MP4 files through ffmpeg, whose program comes with the package imageio-ffmpeg."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from lwdctl.evaluation.frames import Pixels


class Mp4Writer:
    """Encodes frames as they come, H.264 in the pixel format that every player shows.

    Args:
        path: File to write; it is whole only after `close`.
        width: Pixels, even.
        height: Pixels, even.
        rate: Frames per second.
    """

    def __init__(self, path: Path, width: int, height: int, rate: float) -> None:
        frames_per_second = str(Fraction(rate).limit_denominator(1000))
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        # One thread each: many episodes may be encoded side by side.
        coded = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-threads", "1"]
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            [
                *_ffmpeg(), "-y", *raw, "-r", frames_per_second, "-i", "-",
                "-an", *coded, "-pix_fmt", "yuv420p", "-f", "mp4", str(path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # an interrupt is for the parent to deal with
        )  # fmt: skip

    def write(self, frame: Pixels) -> None:
        """Add a frame (height, width, 3).

        Raises:
            OSError: ffmpeg has given up.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            raise OSError(self._complaint()) from None

    def close(self) -> None:
        """Complete the file.

        Raises:
            OSError: ffmpeg failed.
        """
        _, said = self._process.communicate()
        if self._process.returncode:
            raise OSError(_reason(said))

    def abandon(self) -> None:
        """Stop at once; the file is of no use."""
        self._process.kill()
        self._process.communicate()

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        return _reason(self._process.stderr.read())


def read_frames(path: Path, numbers: Sequence[int], width: int, height: int) -> list[Pixels]:
    """Decode the frames (height, width, 3) of these numbers, counted from 0.

    Raises:
        OSError: The file cannot be decoded.
    """
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    select = ["-vf", f"select='{chosen}'", "-fps_mode", "passthrough"]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(  # noqa: S603 - as above
        [*_ffmpeg(), "-i", str(path), *select, *raw],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(_reason(done.stderr))
    return list(np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3))


def _ffmpeg() -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error"]


def _reason(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return f"ffmpeg failed: {lines[-1] if lines else 'it does not say why'}"
