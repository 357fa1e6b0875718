"""What torch's CPU allocator hands out."""

from __future__ import annotations

import torch
from torch.autograd.profiler_util import MEMORY_EVENT_NAME


def allocated_peak(work):
    """Most bytes that torch's CPU allocator had handed out at once during `work()`, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    peak = now = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == MEMORY_EVENT_NAME:
            now += event.nbytes()
            peak = max(peak, now)
    return peak
