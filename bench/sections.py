"""The sections of the report: each measures one question and returns its text.

A section is a function of the results folder and a budget; it returns Markdown, and
leaves its figures and CSV files beside the report.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kernels
import matplotlib
import numpy as np
import torch
from compare import HEADER, compare, table
from contestants import GROUPS
from measure import interleaved, medians, peak_memory, stepper
from nets import NETS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# network, samples, classes, penalty
COMPARISONS = [
    ("digits", 32, 10, "jacobian"),
    ("mnist", 64, 10, "jacobian"),
    ("mnist", 500, 10, "jacobian"),
    ("cifar", 32, 10, "jacobian"),
    ("cifar", 128, 10, "jacobian"),
    ("cifar", 32, 100, "jacobian"),
    ("lenet5", 64, 10, "jacobian"),
    ("mlp", 64, 10, "jacobian"),
    ("vgg11", 32, 10, "jacobian"),
    ("resnet18", 32, 10, "jacobian"),
    ("mnist", 64, 10, "cross-lipschitz"),
]
# The vectorised routes need gigabytes on the large ones and are slower than the loop.
WIDE = {("mnist", 500), ("cifar", 128), ("resnet18", 32)}
ESSENTIAL = [
    "plain step",
    "autograd loop",
    "one projection",
    "fused",
    "fused with loss",
]


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def keep(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write rows as CSV, so that the next run can be compared with this one."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def times(folder: Path, quick: bool) -> str:
    """Whole step by every contestant on every network."""
    parts, kept = [], []
    chosen = COMPARISONS[:2] if quick else COMPARISONS
    for net, samples, classes, group in chosen:
        wide = (net, samples) in WIDE or classes > 10
        results = compare(
            net,
            samples,
            classes,
            group=group,
            only=ESSENTIAL if wide and group == "jacobian" else None,
            rounds=3 if quick else 9,
            seconds=45,
        )
        parts.append(f"### {net}, N = {samples}, K = {classes}, {group} penalty\n")
        parts.append(markdown(HEADER, table(results)) + "\n")
        kept += [[net, samples, classes, group, *row] for row in table(results)]
    keep(folder / "times.csv", ["net", "N", "K", "penalty", *HEADER], kept)
    return "\n".join(parts)


def memory(folder: Path, quick: bool) -> str:
    """Peak resident memory above the plain step, a fresh process each."""
    cases = [("mnist", 64, 10)] if quick else [("mnist", 500, 10), ("cifar", 128, 10)]
    rows = [
        [net, samples, classes, name, f"{peak_memory(net, name, samples, classes):.0f}"]
        for net, samples, classes in cases
        for name in ESSENTIAL[1:]
    ]
    for classes in () if quick else (100, 1000):
        peak = peak_memory("mnist", "fused", 64, classes)
        rows.append(["mnist", 64, classes, "fused", f"{peak:.0f}"])
    header = ["net", "N", "K", "contestant", "MiB above the plain step"]
    keep(folder / "memory.csv", header, rows)
    return markdown(header, rows)


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of a straight line."""
    slope, intercept = np.polyfit(x, y, 1)
    residual = np.square(np.polyval([slope, intercept], x) - y).sum()
    spread = np.square(np.array(y) - np.mean(y)).sum()
    return float(slope), float(intercept), float(1 - residual / spread)


def fused_ms(cases: Sequence[tuple[int, int]], net: str, rounds: int) -> list[float]:
    """Milliseconds of the fused step for (samples, classes), interleaved."""
    total = GROUPS["jacobian"]["fused"].total
    steps = {}
    for samples, classes in cases:
        x, y = NETS[net].batch(samples, classes)
        model = NETS[net].build(classes)
        steps[f"{samples} {classes}"] = stepper(total, model, x, y)
    found = medians(interleaved(steps, rounds))
    return [1000 * found[f"{samples} {classes}"] for samples, classes in cases]


def scaling(folder: Path, quick: bool) -> str:
    """Time of the fused step against K, N and threads, with straight-line fits."""
    rounds = 3 if quick else 9
    net = "digits" if quick else "mnist"
    classes = [10, 20, 40, 80] if quick else [10, 25, 50, 75, 100]
    samples = [32, 64, 128, 256] if quick else [32, 64, 128, 256, 500]
    against = {
        "K": (classes, fused_ms([(64, k) for k in classes], net, rounds)),
        "N": (samples, fused_ms([(n, 10) for n in samples], net, rounds)),
    }
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    rows = []
    for axis, (name, (x, y)) in zip(panels, against.items(), strict=True):
        slope, intercept, quality = fit(x, y)
        rows.append([name, f"{slope:.3f}", f"{intercept:.1f}", f"{quality:.4f}"])
        ends = np.array([0, max(x)])
        axis.plot(ends, slope * ends + intercept, color="0.7", zorder=1)
        axis.scatter(x, y, color="tab:blue", zorder=2)
        axis.set(xlabel=name, ylabel="ms a step", ylim=(0, None), xlim=(0, None))
        axis.set_title(f"{slope:.2f} ms for each, R² = {quality:.4f}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"fused step, {net} net")
    figure.savefig(folder / "scaling.png", dpi=150)
    plt.close(figure)
    header = ["against", "ms for each", "ms at 0", "R^2"]
    keep(folder / "scaling.csv", header, rows)
    text = markdown(header, rows) + "\n\n![scaling](scaling.png)\n\n"
    return text + threads(net, rounds)


def threads(net: str, rounds: int) -> str:
    """One thread against all of them."""
    most = torch.get_num_threads()
    found = {}
    for count in sorted({1, most}):
        torch.set_num_threads(count)
        found[count] = fused_ms([(64, 10)], net, rounds)[0]
    torch.set_num_threads(most)
    rows = [[n, f"{ms:.1f}", f"{found[1] / ms:.2f}x"] for n, ms in found.items()]
    return markdown(["threads", "ms a step", "against one"], rows)


def efficiency(folder: Path, quick: bool) -> str:
    """Useful GFLOP/s of each kernel, against the dense product in the same run."""
    peak = kernels.sgemm(512 if quick else 2048)
    rows = [["dense sgemm", f"{peak:.0f}", "100%"]]
    for name, kernel in kernels.KERNELS.items():
        reached = kernel()
        rows.append([name, f"{reached:.0f}", f"{100 * reached / peak:.0f}%"])
    header = ["kernel", "useful GFLOP/s", "of sgemm"]
    keep(folder / "kernels.csv", header, rows)
    return markdown(header, rows)
