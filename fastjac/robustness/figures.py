"""Figures of robustness reports: curves, a histogram of distances, a grid of images."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastjac.robustness.report import Examples, RobustnessReport

Reports = Mapping[str, RobustnessReport]


def save_all(reports: Reports, folder: str | Path) -> list[Path]:
    """Write the figures of one or more reports by name as PNG files in `folder`.

    Returns:
        The paths written: curves.png, distances.png, and examples.png (for several
        reports examples-NAME.png each) where there are examples that are images.

    Raises:
        ImportError: matplotlib is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"curves": curves(reports), "distances": distances(reports)}
    for name, report in reports.items():
        if report.examples is not None and drawable(report.examples):
            figures[f"examples-{name}" if name else "examples"] = grid(report.examples)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150, bbox_inches="tight")
    return paths


def curves(reports: Reports) -> Any:
    """Accuracy over eps: FGSM as lines, PGD dashed. Returns a matplotlib Figure."""
    figure = _figure(5.2, 3.4)
    axes = figure.subplots()
    for i, (name, report) in enumerate(reports.items()):
        for kind, style in (("fgsm", "-o"), ("pgd", "--s")):
            curve = getattr(report, kind)
            if curve:
                label = f"{name} {kind.upper()}".strip()
                eps, accuracy = list(curve), [100 * a for a in curve.values()]
                axes.plot(eps, accuracy, style, color=f"C{i}", label=label, ms=4)
    axes.set(xlabel="eps (largest change of a pixel)", ylabel="accuracy, %")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    return figure


def distances(reports: Reports) -> Any:
    """Histogram of DeepFool's relative distances. Returns a matplotlib Figure."""
    figure = _figure(5.2, 3.4)
    axes = figure.subplots()
    found = {
        name: finite
        for name, report in reports.items()
        for values in [report.per_sample["relative_distance"].double()]
        if len(finite := values[values.isfinite()])
    }
    top = max((v.quantile(0.995).item() for v in found.values()), default=1.0)
    edges = torch.linspace(0, max(top, 1e-12), 41).tolist()
    for i, (name, values) in enumerate(found.items()):
        color = f"C{i}"
        shown = values.clamp_max(edges[-1]).tolist()
        axes.hist(shown, bins=edges, alpha=0.45, color=color, label=name or None)
        axes.axvline(reports[name].rho_adv, color=color, lw=1.4)
    axes.set(xlabel="distance to the boundary, ||r|| / ||x||", ylabel="samples")
    axes.set_title("vertical line: mean, rho_adv", fontsize=9, loc="right")
    axes.spines[["top", "right"]].set_visible(False)
    if any(found):
        axes.legend(frameon=False)
    return figure


def drawable(examples: Examples) -> bool:
    """Whether the examples are grey or colour images."""
    shape = examples.images.shape
    return len(shape) == 4 and shape[1] in (1, 3)


def grid(examples: Examples) -> Any:
    """Rows of image, perturbation and adversarial image. Returns a Figure.

    Perturbations share one symmetric scale, so that columns can be compared.

    Raises:
        ValueError: samples that are no images `(C, H, W)` with C of 1 or 3.
    """
    if not drawable(examples):
        raise ValueError(
            "a grid needs images (n, C, H, W) with C of 1 or 3; got examples of shape "
            f"{tuple(examples.images.shape)}"
        )
    count = len(examples.images)
    figure = _figure(1.05 * count + 0.9, 3.9)
    axes = figure.subplots(3, count, squeeze=False)
    scale = examples.perturbations.abs().max().clamp_min(1e-12)
    rows = {
        "original": examples.images,
        "perturbation": examples.perturbations,
        "adversarial": examples.adversarial,
    }
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for column, (spot, image) in enumerate(zip(line, images, strict=True)):
            _show(spot, image, scale if name == "perturbation" else None)
            if name == "original":
                spot.set_title(str(examples.predicted[column].item()), fontsize=10)
            elif name == "adversarial":
                text = str(examples.fooled_into[column].item())
                spot.set_xlabel(text, fontsize=10, color="C3")
        line[0].set_ylabel(name, fontsize=9)
    return figure


def _show(axes: Any, image: Tensor, scale: Tensor | None) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    if scale is not None:
        if len(image) == 1:
            limit = scale.item()
            axes.imshow(image[0].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            return
        image = 0.5 + image / (2 * scale)
    image = image.clamp(0, 1)
    if len(image) == 1:
        axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    else:
        axes.imshow(image.permute(1, 2, 0).numpy())


def _figure(width: float, height: float) -> Any:
    """A figure that belongs to nobody's global state and needs no display."""
    try:
        figures = import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "figures need the package matplotlib: pip install matplotlib"
        ) from error
    return figures.Figure(figsize=(width, height), layout="constrained")
