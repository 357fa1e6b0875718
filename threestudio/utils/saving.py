"""`SaverMixin`: everything a system writes into its run's folder.

Files appear whole or not at all, and equal inputs give equal bytes. Methods return the path they wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threestudio.errors import ConfigError, UserError
from threestudio.utils import glbfile, objfile, video
from threestudio.utils.files import atomic_path, write_atomic
from threestudio.utils.picture_saving import PictureSaverMixin

GRAY_MAPS = ("map_Pm", "map_Pr")
"""Textures with one value per texel."""


class SaverMixin(PictureSaverMixin):
    """Methods to save images, videos, meshes and data below one folder, and to show images to wandb if that is on."""

    # ---- videos ----

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
        folder = Path(self.get_save_dir(), img_dir)  # with all frames in it
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
            self.finish_pictures()
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
