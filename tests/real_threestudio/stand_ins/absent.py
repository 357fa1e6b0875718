"""Packages that tests import and do not use: importable where they are not installed, useless all the same."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

IF_NOT_INSTALLED = ("torchvision", "wandb", "envlight", "controlnet_aux", "nvdiffrast", "IPython")
ALWAYS = (
    "igl",  # threestudio 0.2.3 imports names that libigl 2.6 no longer has
    "nerfacc",  # the submodules that nerfacc.py beside this file does not have
)


class AbsentError(RuntimeError):
    """A stand-in without contents was used."""


class _Absent(type):
    """The type of everything that a stand-in module contains: may be subclassed and passed on, not called."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise AbsentError(f"{cls.__module__}.{cls.__qualname__} is a stand-in of the tests; the real package is absent")

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{cls.__qualname__}.{name}", (), {"__module__": cls.__module__})


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {"__module__": self.__name__})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, packages: tuple[str, ...]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        package, _, inner = name.partition(".")
        if package not in self.packages or (package == "nerfacc" and not inner):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        print(f"stand-in without contents: {module.__name__}", file=sys.stderr)


def install() -> None:
    sys.meta_path.insert(0, _Finder(ALWAYS))
    sys.meta_path.append(_Finder(IF_NOT_INSTALLED))
