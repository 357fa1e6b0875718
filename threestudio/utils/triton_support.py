"""Whether Triton's kernels can run on a device: to be asked before importing the modules that hold them."""

from __future__ import annotations

from functools import lru_cache

import torch


def triton_runs(device: torch.device) -> bool:
    """Whether Triton compiles and runs a kernel on `device`, a CUDA GPU; found out once, with a warning if not.

    False in torch's deterministic mode too: the kernels add with atomics, in no fixed order.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        return False
    problem = triton_problem(torch.cuda.current_device() if device.index is None else device.index)
    return problem is None


@lru_cache(maxsize=None)
def triton_problem(index: int) -> str | None:
    """What keeps Triton from running on CUDA device `index`, in one line; None if nothing does."""
    problem = _problem(torch.device("cuda", index))
    if problem is not None:
        from threestudio import warn  # at the top it would be a circle

        warn(
            f"Triton's kernels do not run on cuda:{index} ({problem}): radiance fields take PyTorch's operations, "
            "which are slower. Triton comes with PyTorch for CUDA on Linux and needs a C compiler at run time."
        )
    return problem


def _problem(device: torch.device) -> str | None:
    try:
        from threestudio.utils.ray_scan_triton import exclusive_ray_sum

        values, starts = torch.tensor([2.0, 3.0], device=device), torch.tensor([0, 2], device=device)
        with torch.cuda.device(device):
            found = exclusive_ray_sum(values, starts, reverse=False).tolist()
    # Whatever the compiler, the driver or the import raises: the message goes into the warning.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return None if found == [0.0, 2.0] else f"a test kernel gave {found} in place of [0.0, 2.0]"
