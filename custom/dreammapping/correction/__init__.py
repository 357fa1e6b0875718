"""b_psi of LMC-SDS: a small frozen network that blurs as the teacher's one-step denoising does.

`python -m custom.dreammapping.correction.train --help` makes one. The training is not imported here: losses import
this package, and it imports the losses' parts.
"""

from __future__ import annotations

from .card import READS, CorrectorCard, training_command
from .corrector import Corrector, build_corrector, load_corrector, save_corrector

__all__ = [
    "READS",
    "Corrector",
    "CorrectorCard",
    "build_corrector",
    "load_corrector",
    "save_corrector",
    "training_command",
]
