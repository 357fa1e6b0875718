"""`PictureSaverMixin`: images of any kind into the run's folder, if wanted by a thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from threestudio.errors import UserError, WriteError
from threestudio.utils import imaging
from threestudio.utils.background_writer import BackgroundWriter, Snapshot
from threestudio.utils.files import atomic_path

WAITING_PICTURES = 256 * 2**20
"""Bytes of images that may wait for the thread: some dozens of 512 x 512, in float32."""


class PictureSaverMixin:
    """Methods to save images below one folder, and to show them to wandb if that is on."""

    _save_dir: str | None = None
    _wandb_logger: Any = None
    _writer: BackgroundWriter | None = None

    # ---- where ----

    def set_save_dir(self, save_dir: str) -> None:
        self._save_dir = str(save_dir)

    def get_save_dir(self) -> str:
        """The folder given to `set_save_dir`; ValueError before that. All images saved so far are in it."""
        self.finish_pictures()  # whoever asks may want to look into it
        return self._known_save_dir()

    def _known_save_dir(self) -> str:
        if self._save_dir is None:
            raise ValueError("No save folder yet: call set_save_dir(folder) before saving.")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """Absolute path of `filename` in the save folder; folders on the way are created."""
        path = Path(self._known_save_dir(), filename).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    # ---- when ----

    def write_pictures_in_background(self) -> None:
        """From now on methods that save images return at once; a thread makes the pictures and writes the files.

        Their paths come before their files: `finish_pictures` or `get_save_dir` first, then look. What goes wrong is
        raised by the next call of such a method, or of these.
        """
        self._writer = self._writer or BackgroundWriter(limit=WAITING_PICTURES)

    def finish_pictures(self) -> None:
        """Wait until all images are in their files.

        Raises:
            UserError: one of them could not be written.
        """
        if self._writer is not None:
            self._writer.flush()

    def write_pictures_at_once(self, *, quietly: bool = False) -> None:
        """Wait as `finish_pictures`, and end the thread. With `quietly` a failure is a warning."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close_quietly() if quietly else writer.close()

    # ---- loggers ----

    def create_loggers(self, cfg_loggers: Mapping[str, Any]) -> None:
        """Build the loggers of a config `{"wandb": {"enable": bool, "project": str, "name": str}}`."""
        wandb = cfg_loggers.get("wandb")
        if not wandb or not wandb.get("enable"):
            return
        try:
            from pytorch_lightning.loggers import WandbLogger

            self._wandb_logger = WandbLogger(project=wandb.get("project"), name=wandb.get("name"))
        except ModuleNotFoundError as error:
            raise UserError(
                "loggers.wandb.enable is true, but wandb is not installed. Install it with: pip install wandb"
            ) from error

    def get_loggers(self) -> list[Any]:
        return [] if self._wandb_logger is None else [self._wandb_logger]

    def _log_file(self, kind: str, name: str | None, step: int | None, path: str) -> None:
        if name and self._wandb_logger is not None:
            import wandb

            item = wandb.Image(path) if kind == "image" else wandb.Video(path, format=Path(path).suffix[1:])
            wandb.log({name: item, "trainer/global_step": step})

    # ---- conversions ----

    @classmethod
    def convert_data(cls, data: Any) -> Any:
        """Tensors to numpy arrays inside lists and dicts. None and arrays pass; anything else is a TypeError."""
        if data is None or isinstance(data, np.ndarray):
            return data
        if isinstance(data, torch.Tensor):
            data = data.detach()
            # numpy has no bfloat16, and half precision helps no file format.
            return (data.float() if data.is_floating_point() and data.element_size() < 4 else data).cpu().numpy()
        if isinstance(data, list):
            return [cls.convert_data(item) for item in data]
        if isinstance(data, dict):
            return {key: cls.convert_data(value) for key, value in data.items()}
        raise TypeError(
            f"convert_data takes None, arrays, tensors, lists and dicts; it was given {type(data).__name__}."
        )

    # ---- images ----

    def save_image(self, filename: str, img: Any) -> str:
        """An image [H, W] or [H, W, 3 or 4], uint8 (or uint16 with one channel), as it is."""
        if str(img.dtype).removeprefix("torch.") not in ("uint8", "uint16"):
            raise UserError(
                f"save_image: {filename} needs uint8 or uint16; the image is {img.dtype}. See save_rgb_image."
            )
        return self._save_picture(filename, self.convert_data, img)

    def _save_picture(
        self,
        filename: str,
        make: Callable[[Any], np.ndarray],
        data: Any,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Write the picture that `make` makes of `data`: now, or of what `data` is now in the thread."""
        path = self.get_save_path(filename)
        if self._writer is None:
            _write_picture(path, make(data))
        else:
            taken = Snapshot(data)
            self._writer.put(path, lambda: _write_picture(path, make(taken.read())), taken.size)
        if name and self._wandb_logger is not None:
            self.finish_pictures()  # wandb reads the file
            self._log_file("image", name, step, path)
        return path

    def save_rgb_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0, 1),
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Color image; more than three channels stand side by side in groups of three. uint8 is written as it is."""

        def make(x: Any) -> np.ndarray:
            return imaging.rgb_image(self.convert_data(x), data_format, data_range)

        return self._save_picture(filename, make, img, name, step)

    def save_uv_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0, 1),
        cmap: str = "checkerboard",
    ) -> str:
        """Texture coordinates [H, W, 2]; cmap "checkerboard" or "color"."""

        def make(x: Any) -> np.ndarray:
            return imaging.uv_image(self.convert_data(x), data_format, data_range, cmap)

        return self._save_picture(filename, make, img)

    def save_grayscale_image(
        self,
        filename: str,
        img: Any,
        data_range: tuple[float, float] | None = None,
        cmap: str | None = "jet",
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """One value per pixel [H, W]; cmap None, "jet", "magma" or "spectral"; without a range, from minimum to
        maximum."""

        def make(x: Any) -> np.ndarray:
            return imaging.grayscale_image(self.convert_data(x), data_range, cmap)

        return self._save_picture(filename, make, img, name, step)

    def save_image_grid(
        self,
        filename: str,
        imgs: Sequence[Any],
        align: Any = "max",
        name: str | None = None,
        step: int | None = None,
        texts: Sequence[str] | None = None,
    ) -> str:
        """Several images as one; `imgs` and `align` as in `imaging.image_grid`, arrays may be tensors."""

        def converted(item: Any) -> Any:
            if isinstance(item, (list, tuple)):
                return [converted(cell) for cell in item]
            return {**item, "img": self.convert_data(item["img"])}

        def make(x: Any) -> np.ndarray:
            grid = imaging.image_grid(converted(x), align)
            return imaging.with_texts(grid, texts) if texts else grid

        return self._save_picture(filename, make, imgs, name, step)

    def save_cubemap(
        self, filename: str, img: Any, data_range: tuple[float, float] = (0, 1), rgba: bool = False
    ) -> str:
        """Six faces [6, S, S, C] as a cross, see `imaging.cubemap_image`."""

        def make(x: Any) -> np.ndarray:
            return imaging.cubemap_image(self.convert_data(x), data_range, rgba)

        return self._save_picture(filename, make, img)


def _write_picture(path: str, picture: np.ndarray) -> None:
    options = {"quality": 95} if path.lower().endswith((".jpg", ".jpeg")) else {}
    try:
        with atomic_path(path) as temporary:
            Image.fromarray(np.ascontiguousarray(picture)).save(temporary, **options)
    except OSError as error:
        raise WriteError.of(path, error) from error
