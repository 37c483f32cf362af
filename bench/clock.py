"""Times of work on a CPU or, by events, on a GPU: medians of single calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(
    function: Callable[[], object],
    device: str = "cpu",
    rounds: int = 15,
    budget: float = 10.0,
) -> float:
    """Median seconds of a call, after two to warm up.

    On a GPU the time between two events on the stream around the call: what the device
    took, with whatever it had to wait for the host in between. Stops early, after at
    least three rounds, when ``budget`` seconds are spent.
    """
    for _ in range(2):
        function()
    begun = time.perf_counter()
    times = []
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > budget:
            break
        times.append(once(function, device))
    return statistics.median(times)


def once(function: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    return _on_gpu(function) if device == "cuda" else _on_cpu(function)


def _on_cpu(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _on_gpu(function: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000
