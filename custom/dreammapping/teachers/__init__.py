"""Teachers: the diffusion models that predict noise."""

from __future__ import annotations

from .closed_form import ClosedFormTeacher, GaussianMixture
from .diffusers_teacher import DiffusersTeacher, TeacherOptions
from .protocol import Teacher

__all__ = ["ClosedFormTeacher", "DiffusersTeacher", "GaussianMixture", "Teacher", "TeacherOptions"]
