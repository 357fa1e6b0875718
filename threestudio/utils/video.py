"""Frames in a folder -> one mp4 or gif."""

from __future__ import annotations

import re
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


def write_mp4(path: Path, frames: list[Path], fps: float) -> None:
    """H.264, yuv420p, reproducible bytes. Odd sizes are grown by repeating the last row or column."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise MissingVideoEncoderError(
            "Writing an mp4 needs ffmpeg, which was not found. Install it with: pip install imageio imageio-ffmpeg"
        ) from error
    size = read_frame(frames[0]).shape
    # Plain flags keep the encoder's name and the date out of the file, so that equal frames give equal bytes.
    exact = ["-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1", "-threads", "1"]
    with imageio.get_writer(path, format="FFMPEG", mode="I", fps=fps, macro_block_size=1, output_params=exact) as writer:
        for file in frames:
            frame = read_frame(file)
            if frame.shape != size:
                raise UserError(f"{file} is {frame.shape[1]} x {frame.shape[0]}; the first frame is {size[1]} x {size[0]}.")
            writer.append_data(np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge"))


def write_gif(path: Path, frames: list[Path], fps: float) -> None:
    """An endless gif; its frame time is a multiple of 10 ms by the format."""
    images = [Image.fromarray(read_frame(file)) for file in frames]
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=max(10, round(1000 / fps)), loop=0)
