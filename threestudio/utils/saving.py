"""`SaverMixin`: everything a system writes into its run's folder.

Files appear whole or not at all, and equal inputs give equal bytes. Methods return the path they wrote.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from threestudio.errors import ConfigError, UserError
from threestudio.utils import glbfile, imaging, objfile, video
from threestudio.utils.files import atomic_path, write_atomic

GRAY_MAPS = ("map_Pm", "map_Pr")
"""Textures with one value per texel."""


class SaverMixin:
    """Methods to save images, videos, meshes and data below one folder, and to show images to wandb if that is on."""

    _save_dir: str | None = None
    _wandb_logger: Any = None

    # ---- where ----

    def set_save_dir(self, save_dir: str) -> None:
        self._save_dir = str(save_dir)

    def get_save_dir(self) -> str:
        """The folder given to `set_save_dir`; ValueError before that."""
        if self._save_dir is None:
            raise ValueError("No save folder yet: call set_save_dir(folder) before saving.")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """Absolute path of `filename` in the save folder; folders on the way are created."""
        path = Path(self.get_save_dir(), filename).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

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
        img = self.convert_data(img)
        if img.dtype not in (np.uint8, np.uint16):
            raise UserError(
                f"save_image: {filename} needs uint8 or uint16; the image is {img.dtype}. See save_rgb_image."
            )
        return self._write_image(filename, img)

    def _write_image(self, filename: str, img: np.ndarray) -> str:
        path = self.get_save_path(filename)
        picture = Image.fromarray(np.ascontiguousarray(img))
        options = {"quality": 95} if path.lower().endswith((".jpg", ".jpeg")) else {}
        with atomic_path(path) as temporary:
            picture.save(temporary, **options)
        return path

    def _save_and_log(self, filename: str, img: np.ndarray, name: str | None, step: int | None) -> str:
        path = self._write_image(filename, img)
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
        picture = imaging.rgb_image(self.convert_data(img), data_format, data_range)
        return self._save_and_log(filename, picture, name, step)

    def save_uv_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0, 1),
        cmap: str = "checkerboard",
    ) -> str:
        """Texture coordinates [H, W, 2]; cmap "checkerboard" or "color"."""
        return self._write_image(filename, imaging.uv_image(self.convert_data(img), data_format, data_range, cmap))

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
        return self._save_and_log(
            filename, imaging.grayscale_image(self.convert_data(img), data_range, cmap), name, step
        )

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

        grid = imaging.image_grid(converted(imgs), align)
        if texts:
            grid = imaging.with_texts(grid, texts)
        return self._save_and_log(filename, grid, name, step)

    def save_cubemap(
        self, filename: str, img: Any, data_range: tuple[float, float] = (0, 1), rgba: bool = False
    ) -> str:
        """Six faces [6, S, S, C] as a cross, see `imaging.cubemap_image`."""
        return self._write_image(filename, imaging.cubemap_image(self.convert_data(img), data_range, rgba))

    def save_img_sequence(
        self,
        filename: str,
        img_dir: str,
        matcher: str,
        save_format: str = "mp4",
        fps: int = 30,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        r"""Images of `img_dir` (in the save folder) as one video, in the order of the number caught by `matcher`.

        Args:
            matcher: regular expression with one group, such as r"(\d+)\.png".
            save_format: "mp4" or "gif"; appended to the file name if it is not its ending.
        """
        writers = {"mp4": video.write_mp4, "gif": video.write_gif}
        if save_format not in writers:
            raise ConfigError(f"save_img_sequence: save_format is {save_format!r}; it must be 'mp4' or 'gif'.")
        if not filename.endswith(f".{save_format}"):
            filename += f".{save_format}"
        folder = Path(self.get_save_dir(), img_dir)
        if not folder.is_dir():
            raise UserError(f"save_img_sequence: the folder {folder} does not exist.")
        path = self.get_save_path(filename)
        frames = video.numbered_frames(folder, matcher)
        with atomic_path(path) as temporary:
            writers[save_format](temporary, frames, fps)
        self._log_file("video", name, step, path)
        return path

    # ---- data ----

    def save_data(self, filename: str, data: Any) -> str:
        """An array as .npy, a dict of arrays as .npz; the suffix is appended if it is missing."""
        data = self.convert_data(data)
        suffix = ".npz" if isinstance(data, dict) else ".npy"
        path = self.get_save_path(filename if filename.endswith(suffix) else filename + suffix)
        with atomic_path(path) as temporary:
            with open(temporary, "wb") as file:
                if isinstance(data, dict):
                    np.savez(file, **data)
                else:
                    np.save(file, data)
        return path

    def save_state_dict(self, filename: str, data: Any) -> str:
        """`torch.save`, readable with `weights_only=True` if `data` holds tensors and plain values."""
        path = self.get_save_path(filename)
        # A file object instead of a path: torch puts a path's name into the file, and the temporary one is random.
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(data, file)
        return path

    def save_json(self, filename: str, payload: Any) -> str:
        path = self.get_save_path(filename)
        write_atomic(path, (json.dumps(payload, indent=2, ensure_ascii=False) + "\n").encode())
        return path

    def save_file(self, filename: str, src_path: str) -> str:
        """Copy a file into the save folder."""
        path = self.get_save_path(filename)
        with atomic_path(path) as temporary:
            shutil.copyfile(src_path, temporary)
        return path

    # ---- meshes ----

    def save_mesh(self, filename: str, v_pos: Any, t_pos_idx: Any, v_tex: Any = None, t_tex_idx: Any = None) -> str:
        """Vertices and faces in any format of trimesh (.ply, .glb, .stl, ...). Texture coordinates are not written."""
        import trimesh

        path = self.get_save_path(filename)
        mesh = trimesh.Trimesh(self.convert_data(v_pos), self.convert_data(t_pos_idx), process=False)
        with atomic_path(path) as temporary:
            mesh.export(temporary)
        return path

    def save_obj(
        self,
        filename: str,
        mesh: Any,
        save_mat: bool = False,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,
        map_Ks: Any = None,
        map_Bump: Any = None,
        map_Pm: Any = None,
        map_Pr: Any = None,
        map_format: str = "jpg",
    ) -> list[str]:
        """A `Mesh` as .obj, with .mtl and textures beside it if `save_mat`.

        Args:
            map_Kd, map_Ks, map_Bump: albedo, specular, normal textures [H, W, 3] in [0, 1].
            map_Pm, map_Pr: metallic, roughness textures [H, W] or [H, W, 1] in [0, 1].

        Returns:
            Paths of all files written, the .obj first.
        """
        filename = filename if filename.endswith(".obj") else filename + ".obj"
        mtl_name = filename[: -len(".obj")] + ".mtl" if save_mat else None
        text = objfile.obj_text(
            **self._mesh_arrays(mesh, save_normal, save_uv, save_vertex_color),
            mtl_name=None if mtl_name is None else Path(mtl_name).name,
        )
        paths = [self.get_save_path(filename)]
        if mtl_name is not None:
            textures = {"map_Kd": map_Kd, "map_Ks": map_Ks, "map_Bump": map_Bump, "map_Pm": map_Pm, "map_Pr": map_Pr}
            paths += self._save_material(mtl_name, textures, map_format)
        write_atomic(paths[0], text.encode())  # last, so that a finished .obj always finds its material
        return paths

    def save_glb(
        self,
        filename: str,
        mesh: Any,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,
        map_Bump: Any = None,
        map_Pm: Any = None,
        map_Pr: Any = None,
    ) -> str:
        """A `Mesh` as .glb with its textures inside, in glTF's axes (y up, front +z); arguments as in `save_obj`."""
        path = self.get_save_path(filename if filename.endswith(".glb") else filename + ".glb")
        maps = {"map_Kd": map_Kd, "map_Bump": map_Bump, "map_Pm": map_Pm, "map_Pr": map_Pr}
        maps = {key: self.convert_data(image) for key, image in maps.items() if image is not None}
        data = glbfile.glb_bytes(
            **self._mesh_arrays(mesh, save_normal, save_uv, save_vertex_color),
            maps={key: image[..., 0] if key in GRAY_MAPS and image.ndim == 3 else image for key, image in maps.items()},
        )
        write_atomic(path, data)
        return path

    def _mesh_arrays(self, mesh: Any, normal: bool, uv: bool, vertex_color: bool) -> dict[str, Any]:
        """What the writers of mesh files take; None for what is not asked for."""
        arrays = {
            "v_pos": mesh.v_pos,
            "t_pos_idx": mesh.t_pos_idx,
            "v_nrm": mesh.v_nrm if normal else None,
            "v_tex": mesh.v_tex if uv else None,
            "t_tex_idx": mesh.t_tex_idx if uv else None,
            "v_rgb": mesh.v_rgb if vertex_color else None,
        }
        return self.convert_data(arrays)

    def _save_material(self, filename: str, textures: dict[str, Any], map_format: str) -> list[str]:
        stems = {"map_Kd": "kd", "map_Ks": "ks", "map_Bump": "nrm", "map_Pm": "metallic", "map_Pr": "roughness"}
        written, names = [], {}
        for key, image in textures.items():
            if image is None:
                continue
            names[key] = f"texture_{stems[key]}.{map_format}"
            target = str(Path(filename).with_name(names[key]))
            if key in GRAY_MAPS:
                image = self.convert_data(image)
                values = image[..., 0] if image.ndim == 3 else image
                written.append(self.save_grayscale_image(target, values, data_range=(0, 1), cmap=None))
            else:
                written.append(self.save_rgb_image(target, image))
        path = self.get_save_path(filename)
        write_atomic(path, objfile.mtl_text(names).encode())
        return [path, *written]
