"""What fastjac is to reach on an H200, and whether what was measured reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import nan

import torch


@dataclass(frozen=True)
class Case:
    """A network and a batch."""

    net: str
    samples: int
    classes: int


MNIST = Case("mnist", 500, 10)
CIFAR = Case("cifar", 128, 10)
CIFAR_100 = Case("cifar", 128, 100)
RESNET = Case("resnet18 of full width", 128, 10)


@dataclass(frozen=True)
class Row:
    """A contestant's whole step."""

    ms: float
    strict: float  # error to float64, in strict float32
    tf32: float  # the same with TF32 allowed
    mib: float  # peak memory above the model and the batch
    launches: int

    def line(self, fused: Row | None) -> list[str]:
        """The row as text; its time also as a multiple of the fused step's."""
        ratio = "" if fused is None else f"{self.ms / fused.ms:.2f}x"
        errors = [f"{self.strict:.1e}", f"{self.tf32:.1e}"]
        return [f"{self.ms:.2f}", ratio, *errors, f"{self.mib:.0f}", f"{self.launches}"]


@dataclass
class Measured:
    """All numbers of a run."""

    steps: dict[Case, dict[str, Row]] = field(default_factory=dict)
    kernels: dict[str, float] = field(default_factory=dict)  # useful GFLOP/s

    def ms(self, case: Case, name: str) -> float:
        """Milliseconds of a step; NaN if it was not measured."""
        row = self.steps.get(case, {}).get(name)
        return nan if row is None else row.ms

    def fastest_exact(self, case: Case, *but: str) -> float:
        """Milliseconds of the fastest exact contestant that is not fastjac."""
        inexact = ("fused", "plain step", "one projection", *but)
        others = [r.ms for n, r in self.steps.get(case, {}).items() if n not in inexact]
        return min(others, default=nan)


@dataclass(frozen=True)
class Target:
    """A number, and the bound that it is to keep."""

    name: str
    got: float
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        """One line that begins with PASS, FAIL or OPEN, the last if not measured."""
        wanted = f"at least {self.least:g}" if self.least else f"at most {self.most:g}"
        if self.got != self.got:
            return f"OPEN  {self.name}: not measured, wanted {wanted}"
        low = self.least is None or self.got >= self.least
        high = self.most is None or self.got <= self.most
        word = "PASS" if low and high else "FAIL"
        return f"{word}  {self.name}: {self.got:.3g}, wanted {wanted}"


#: Useful operations of the penalty on the MNIST network at N = 500, with pools and half
#: of the ReLU gates made use of.
MNIST_FLOP = 66e9
#: FP32 operations a cycle of a multiprocessor, and cycles a second of an H100 or H200.
A_CYCLE, CYCLES = 256, 1.98e9


def fp32_peak(device: str) -> float:
    """FP32 operations a second of the GPU; NaN if it is no H100 or H200."""
    if device != "cuda" or torch.cuda.get_device_capability() != (9, 0):
        return nan
    count = torch.cuda.get_device_properties(0).multi_processor_count
    return count * A_CYCLE * CYCLES


def all_targets(measured: Measured, device: str) -> Iterator[Target]:
    """Every target, with what was measured of it."""
    fused = measured.ms(MNIST, "fused")
    loop = measured.ms(MNIST, "autograd loop")
    yield Target("MNIST N=500: autograd loop / fused", loop / fused, least=10)
    best = measured.fastest_exact(MNIST, "autograd loop") / fused
    yield Target("MNIST N=500: fastest vectorised or compiled / fused", best, least=4)
    projection = fused / measured.ms(MNIST, "one projection")
    yield Target("MNIST N=500: fused / one projection", projection, most=1.5)
    for name, case, least in (
        ("CIFAR N=128, K=10", CIFAR, 5),
        ("CIFAR N=128, K=100", CIFAR_100, 5),
        ("ResNet-18 N=128", RESNET, 3),
    ):
        ratio = measured.fastest_exact(case) / measured.ms(case, "fused")
        yield Target(f"{name}: fastest exact / fused", ratio, least=least)
    peak = fp32_peak(device)
    for direction in ("pull", "push", "weight"):
        share = measured.kernels.get(direction, nan) * 1e9 / peak
        yield Target(f"gated conv2 {direction}: share of FP32 peak", share, least=0.4)
    penalty = fused - measured.ms(MNIST, "plain step")
    times = penalty / (1e3 * MNIST_FLOP / peak)
    yield Target("MNIST N=500: penalty / its roofline", times, most=3)
    row = measured.steps.get(MNIST, {}).get("fused")
    launches = nan if row is None else float(row.launches)
    yield Target("MNIST N=500: launches of the whole step", launches, most=59)
    for case, rows in measured.steps.items():
        if "fused" not in rows:
            continue
        where = f"{case.net} N={case.samples}, K={case.classes}"
        if "autograd loop" in rows:
            share = rows["fused"].mib / rows["autograd loop"].mib
            yield Target(f"{where}: peak memory / the loop's", share, most=0.2)
        yield Target(f"{where}: error, strict", rows["fused"].strict, most=1e-5)
        yield Target(f"{where}: error, TF32", rows["fused"].tf32, most=2e-3)


def verdicts(measured: Measured, device: str) -> str:
    """A line for each target."""
    lines = "\n".join(str(target) for target in all_targets(measured, device))
    return f"```\n{lines}\n```"
