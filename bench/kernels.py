"""Kernel efficiency: one small function a kernel, each measured against dense sgemm.

A function in `KERNELS` times one kernel and returns its useful operations a second; the
report divides by what `sgemm` reaches in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds(function: Callable[[], object], rounds: int = 15) -> float:
    """Median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sgemm(size: int = 2048) -> float:
    """GFLOP/s of torch's dense float32 matrix product, what the machine can do."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    out = torch.empty(size, size)
    return 2 * size**3 / seconds(lambda: torch.mm(a, b, out=out)) / 1e9


#: name -> function that returns useful GFLOP/s. A kernel adds itself here in one line.
KERNELS: dict[str, Callable[[], float]] = {}
