"""Figures, drawn with matplotlib (imported only when one is drawn)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastjac.checkpoint import write_atomic

BEFORE, AFTER, INK, FAINT = "#c4572f", "#1f6f8b", "#22272b", "#9aa3a8"


_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True)
class Curve:
    """What is drawn of one model.

    Attributes:
        name, color: in legends and labels.
        eps, accuracy: the accuracy under FGSM, 0 to 1, by size of the attack.
        relative: (N,) the size of the fooling perturbation, ||r|| / ||x||.
        perturbation: (M, H, W) the fooling perturbations of the shown images.
        labels: (M,) the classes that the shown images are then taken for.
    """

    name: str
    color: str
    eps: Sequence[float]
    accuracy: Sequence[float]
    relative: Tensor
    perturbation: Tensor
    labels: Sequence[int]


def before_and_after(
    path: str | Path,
    curves: Sequence[Curve],
    images: Tensor,
    labels: Sequence[int],
    title: str,
) -> None:
    """Draw models side by side to a PNG: curves above, fooled images below.

    Args:
        path: PNG file to write.
        curves: one entry a model.
        images: (M, H, W) in [0, 1], the same images for all models.
        labels: (M,) their classes.
        title: what the figure shows, in a line.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "the figure needs matplotlib: pip install matplotlib, or 'fastjac[cli]'"
        ) from None
    with rc_context(_STYLE):
        picture_rows = 1.08 * (1 + 2 * len(curves)) + 0.5
        figure = Figure(figsize=(11, 4.3 + picture_rows), dpi=150)
        inch = 1 / figure.get_figheight()
        figure.text(0.06, 1 - 0.45 * inch, title, fontsize=14, weight="bold")
        above = figure.add_gridspec(
            nrows=1,
            ncols=2,
            left=0.06,
            right=0.975,
            top=1 - 0.95 * inch,
            bottom=(picture_rows + 0.75) * inch,
            wspace=0.17,
        )
        _draw_fgsm(figure.add_subplot(above[0]), curves)
        _draw_distances(figure.add_subplot(above[1]), curves)
        below = (0.125, 0.15 * inch, 0.85, (picture_rows - 0.25) * inch)
        _draw_images(figure, below, curves, images, labels)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_atomic(path, lambda file: file.write(buffer.getvalue()))


def _draw_fgsm(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        percent = 100 * np.asarray(curve.accuracy)
        axes.plot(curve.eps, percent, "o-", color=curve.color, lw=2, ms=4.5)
    _name_lines(axes, curves)
    axes.set(ylim=(0, 102), xlim=(0, None))
    axes.set_xlabel("size of the FGSM step (pixels lie in 0 to 1)")
    axes.set_title("Test accuracy under attack, %", loc="left", fontsize=11)
    axes.grid(axis="y", color="#e6e9ea")
    axes.set_axisbelow(True)


def _draw_distances(axes: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        sizes = np.sort(curve.relative.double().numpy())
        share = 100 * np.arange(1, len(sizes) + 1) / len(sizes)
        axes.step(sizes, share, where="post", color=curve.color, lw=2)
        mean = float(sizes.mean())
        axes.axvline(mean, color=curve.color, lw=1, ls=(0, (4, 3)))
    means = [float(c.relative.double().mean()) for c in curves]
    for curve, mean in zip(curves, means, strict=True):
        last = mean == max(means)
        axes.annotate(
            rf"$\rho_{{adv}}$ {mean:.3f}",
            (mean, 4),
            xytext=(5 if last else -5, 0),
            textcoords="offset points",
            ha="left" if last else "right",
            color=curve.color,
        )
    widest = max(float(np.quantile(c.relative.numpy(), 0.995)) for c in curves)
    axes.set(ylim=(0, 102), xlim=(0, widest))
    axes.set_xlabel("size of the DeepFool perturbation, ‖r‖ / ‖x‖")
    axes.set_title("Test images fooled by then, %", loc="left", fontsize=11)
    axes.grid(axis="y", color="#e6e9ea")
    axes.set_axisbelow(True)


def _name_lines(axes: Any, curves: Sequence[Curve]) -> None:
    """Write each model's name beside its line, half-way down where there is room."""
    heights = np.array([curve.accuracy for curve in curves])
    at = int(np.argmin(np.abs(heights.mean(axis=0) - 0.5)))
    for curve in curves:
        above = curve.accuracy[at] == heights[:, at].max()
        axes.annotate(
            curve.name,
            (curve.eps[at], 100 * curve.accuracy[at]),
            xytext=(10, 4) if above else (-10, -4),
            textcoords="offset points",
            ha="left" if above else "right",
            va="bottom" if above else "top",
            color=curve.color,
            weight="bold",
        )


def _draw_images(
    figure: Any,
    place: tuple[float, float, float, float],
    curves: Sequence[Curve],
    images: Tensor,
    labels: Sequence[int],
) -> None:
    """A row of images, and for each model a row of perturbations and one of results."""
    left, bottom, width, height = place
    rows, gap = 1 + 2 * len(curves), 0.22
    step = height / (rows + gap * len(curves))

    def axes_at(row: int, column: int) -> Any:
        down = row + 1 + gap * ((row + 1) // 2)
        x = left + width * column / len(images)
        y = bottom + height - step * down
        return figure.add_axes((x, y, 0.94 * width / len(images), 0.8 * step))

    def name_row(row: int, name: str, color: str) -> None:
        y = bottom + height - step * (row + 0.6 + gap * ((row + 1) // 2))
        figure.text(left - 0.01, y, name, color=color, ha="right", va="center")

    largest = max(float(curve.perturbation.abs().max()) for curve in curves)
    name_row(0, "test image", INK)
    for i, curve in enumerate(curves):
        name_row(1 + 2 * i, f"{curve.name}:\nperturbation", curve.color)
        name_row(2 + 2 * i, "fooled", curve.color)
    for column, image in enumerate(images):
        _show(axes_at(0, column), image, "gray", (0, 1), f"{labels[column]}", INK)
        for i, curve in enumerate(curves):
            moved, became = curve.perturbation[column], curve.labels[column]
            size, color = float(moved.norm() / image.norm()), curve.color
            limits = (-largest, largest)
            text = f"{size:.0%} of ‖x‖"
            _show(axes_at(1 + 2 * i, column), moved, "RdBu_r", limits, text, color)
            text = f"{labels[column]} → {became}"
            _show(
                axes_at(2 + 2 * i, column), image + moved, "gray", (0, 1), text, color
            )


def _show(
    axes: Any,
    image: Tensor,
    colors: str,
    limits: tuple[float, float],
    caption: str,
    color: str,
) -> None:
    low, high = limits
    axes.imshow(image.numpy(), cmap=colors, vmin=low, vmax=high)
    axes.set_title(caption, fontsize=9, color=color, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
