"""Frames in a folder -> one mp4 or gif."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from threestudio.errors import ConfigError, UserError


class MissingVideoEncoderError(UserError, ImportError):
    """No ffmpeg to write a video with."""


def numbered_frames(folder: Path, matcher: str) -> list[Path]:
    """Files of `folder` whose whole name fits the regular expression, ordered by its one group, a number."""
    pattern = re.compile(matcher)
    if pattern.groups < 1:
        raise ConfigError(f"save_img_sequence: the matcher {matcher!r} needs one group that catches the frame number.")
    found = [(int(match.group(1)), path) for path in folder.iterdir() if (match := pattern.search(path.name))]
    if not found:
        raise UserError(f"save_img_sequence: no file in {folder} fits {matcher!r}, so there is nothing to join.")
    return [path for _, path in sorted(found)]


def read_frame(path: Path) -> np.ndarray:
    """An image file as [H, W, 3] uint8."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _ffmpeg() -> str:
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise MissingVideoEncoderError(
            "Writing an mp4 needs ffmpeg, which was not found. Install it with: pip install imageio imageio-ffmpeg"
        ) from error


def write_mp4(path: Path, frames: list[Path], fps: float) -> None:
    """H.264, yuv420p, reproducible bytes. Odd sizes are grown by repeating the last row or column."""
    height, width = read_frame(frames[0]).shape[:2]
    source = [
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width + width % 2}x{height + height % 2}",
        "-r",
        str(fps),
        "-i",
        "-",
    ]
    codec = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18", "-threads", "1"]
    # Keeps the encoder's version and the date out of the file, so that equal frames give equal bytes.
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    command = [_ffmpeg(), "-y", "-loglevel", "error", *source, *codec, *exact, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        for file in frames:
            frame = read_frame(file)
            if frame.shape[:2] != (height, width):
                raise UserError(
                    f"{file} is {frame.shape[1]} x {frame.shape[0]}; the first frame is {width} x {height}."
                )
            process.stdin.write(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").tobytes())
    except BrokenPipeError:
        pass  # ffmpeg stopped; what it says about it is raised below
    except BaseException:
        process.kill()
        raise
    finally:
        _, message = process.communicate()
    if process.returncode != 0:
        raise UserError(f"ffmpeg could not write {path.name}: {message.decode(errors='replace').strip()}")


def write_gif(path: Path, frames: list[Path], fps: float) -> None:
    """An endless gif; its frame time is a multiple of 10 ms by the format."""
    images = [Image.fromarray(read_frame(file)) for file in frames]
    images[0].save(
        path, format="GIF", save_all=True, append_images=images[1:], duration=max(10, round(1000 / fps)), loop=0
    )
