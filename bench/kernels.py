"""Kernel efficiency: one small function a kernel, each measured against dense sgemm.

A function in `KERNELS` times one kernel and returns its useful operations a second; the
report divides by what `sgemm` reaches in the same run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import clock
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastjac.linearize import linearize
from fastjac.rules.activation import Gate
from fastjac.rules.base import Sum
from fastjac.rules.convolution import Convolution, Geometry
from fastjac.rules.gated import GatedLayer
from fastjac.rules.layout import InputLayout, Packed
from fastjac.rules.live import Live
from fastjac.rules.pooling import Route


def sgemm(size: int = 2048, device: str = "cpu") -> float:
    """GFLOP/s of torch's dense float32 matrix product, what the machine can do."""
    a, b, out = (torch.rand(size, size, device=device) for _ in range(3))
    taken = clock.seconds(lambda: torch.mm(a, b, out=out), device)
    return 2 * size**3 / taken / 1e9


#: name -> function that returns useful GFLOP/s. A kernel adds itself here in one line.
KERNELS: dict[str, Callable[[], float]] = {}


def conv2(
    direction: str, samples: int = 64, device: str = "cpu", rounds: int = 15
) -> float:
    """Useful GFLOP/s of one pass of the paper's MNIST network's second convolution.

    10 rows, 32 to 64 channels, 5x5, on 14x14, a ReLU and a 2x2 pool behind:
    two operations for each live output, tap, input channel and row.
    """
    rows = 10
    geometry = Geometry((1, 1), (2, 2), (1, 1), False, (0, 0), 1)
    planes = torch.Size((samples, 64, 14, 14))
    layer = Convolution(
        torch.randn(64, 32, 5, 5, device=device),
        geometry,
        torch.Size((samples, 32, 14, 14)),
    )
    before = torch.randn(planes, device=device)
    pooled, index = F.max_pool2d(before.relu(), 2, return_indices=True)
    route = Route(index, planes, 2)
    gate = Gate(before, planes, step=True)
    packed = Packed(layer, planes, 49)
    live = Live(
        packed.geometry,
        planes,
        pooled.shape,
        gate,
        route,
        None,
        before,
        positions=packed.channels_leave_lanes or packed.on_gpu,
    )
    layout = InputLayout(packed, rows)
    compact = torch.randn(live.entries, layout.compact_stride, device=device)
    input = layout.of(torch.randn(rows, samples, 32, 14, 14, device=device))
    gated, total = GatedLayer(layer, packed, live, "conv2"), Sum()
    of_weight = (total,) if direction == "weight" else ()
    taken = clock.seconds(
        lambda: gated.run_pass(direction, layout, compact, input, *of_weight),
        device,
        rounds,
    )
    # Taps that fall outside the image are not counted: they are not computed.
    inside = torch.zeros(14)
    for y in range(14):
        inside[y] = sum(0 <= y + a - 2 < 14 for a in range(5))
    taps = inside.outer(inside).flatten()
    entries = entries_by_pixel(live).sum(0).cpu()
    return float(2 * rows * 32 * (entries * taps).sum()) / taken / 1e9


def live_inputs(direction: str, samples: int = 4, rounds: int = 15) -> float:
    """Useful GFLOP/s of one pass between live outputs and live inputs.

    100 rows, 64 to 64 channels, 3x3, on 16x16, a ReLU below, a ReLU and a 2x2 pool
    behind: two operations for each live output, tap, live input and row.
    """
    rows, size = 100, 16
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * size * size // 4, 2),
    )
    x = torch.randn(samples, 3, size, size, requires_grad=True)
    rules = linearize(net(x), x).rules
    lower, upper = (rule for rule in rules if isinstance(rule, GatedLayer))
    layout, total = upper.layout(rows), Sum()
    assert layout.live_only
    compact = torch.randn(upper.live.entries, layout.compact_stride)
    input = layout.of(torch.randn(rows, samples, 64, size, size))
    of_weight = (total,) if direction == "weight" else ()
    taken = clock.seconds(
        lambda: upper.run_pass(direction, layout, compact, input, *of_weight),
        rounds=rounds,
    )
    below, above = (
        entries_by_pixel(layer.live).view(samples, 1, size, size).double()
        for layer in (lower, upper)
    )
    read = F.conv2d(below, torch.ones(1, 1, 3, 3).double(), padding=1)
    return float(2 * rows * (above * read).sum()) / taken / 1e9


def entries_by_pixel(live: Live) -> Tensor:
    """How many outputs of each pixel before the pool are live, (N, P)."""
    return live.listing.starts.diff(dim=1)


KERNELS |= {
    f"{name} {direction}": partial(kernel, direction)
    for name, kernel in (("gated conv2", conv2), ("live inputs, K = 100,", live_inputs))
    for direction in ("pull", "push", "weight")
}
