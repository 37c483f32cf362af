"""The report's figures as PNG: accuracy over eps (Figures 1 and 2), and the fronts."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fastjac.paper.tables import Measured, of_group

COLORS = {
    "none": "#22272b",
    "adversarial": "#8a6d1d",
    "input-gradient": "#7a5195",
    "cross-lipschitz": "#c4572f",
    "jacobian": "#1f6f8b",
}


def all_figures(rows: Mapping[str, Measured], dataset: str) -> dict[str, bytes]:
    """Every figure that there are numbers for, as PNG by file name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    main = [entry for entry in of_group(rows, "main") if entry.numbers]
    found = {}
    for name, attack, axis in (
        ("figure-1-fgsm.png", "fgsm", "eps, largest change of a pixel"),
        ("figure-2-jsma.png", "jsma", "eps, change of a pixel a step of JSMA"),
    ):
        if any(entry.curve(attack) for entry in main):
            title = f"{dataset}: accuracy under {attack.upper()}"
            found[name] = _curves(main, attack, axis, title)
    if main:
        title = f"{dataset}: accuracy and robustness of each defence"
        found["defences.png"] = _front(main, title, [])
    sweep = [entry for entry in of_group(rows, "lambda") if entry.numbers]
    if sweep:
        title = f"{dataset}: accuracy against rho_adv over lambda"
        ends = [rows[key] for key in ("none",) if key in rows and rows[key].numbers]
        found["lambda-front.png"] = _front([*ends, *sweep], title, sweep)
    return found


def _figure(title: str, width: float = 9.6) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "the report's figures need matplotlib: pip install matplotlib, or"
            " 'fastjac[cli]'"
        ) from None
    figure = Figure(figsize=(width, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_title(title, loc="left", fontsize=11)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(key: str) -> dict[str, Any]:
    """A colour by penalty; dashed with adversarial training."""
    name, plus, _ = key.partition("+")
    dashed = {"linestyle": "--", "marker": "s", "markerfacecolor": "white"}
    return {
        "color": COLORS.get(name, "#4c7a34"),
        "markersize": 5,
        "linewidth": 1.8,
        **(dashed if plus else {"linestyle": "-", "marker": "o"}),
    }


def _curves(entries: Sequence[Measured], attack: str, axis: str, title: str) -> bytes:
    figure, axes = _figure(title)
    for entry in entries:
        curve = entry.curve(attack)
        if curve:
            sizes, accuracy = zip(*curve, strict=True)
            percent = [100 * value for value in accuracy]
            axes.plot(sizes, percent, label=entry.row.title, **_style(entry.row.key))
    axes.set(xlabel=axis, ylabel="test accuracy, %", ylim=(0, 102))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _png(figure)


def _front(
    entries: Sequence[Measured], title: str, joined: Sequence[Measured]
) -> bytes:
    """Accuracy over rho_adv, a point a row, with error bars over seeds."""
    figure, axes = _figure(title)
    if joined:
        points = sorted(
            (100 * _of(e, "rho_adv"), 100 * _of(e, "accuracy")) for e in joined
        )
        axes.plot(*zip(*points, strict=True), color="#9aa3a8", lw=1, zorder=1)
    for number, entry in enumerate(entries):
        style = _style(entry.row.key)
        style.pop("linestyle")
        if entry in joined:
            style["color"] = f"C{number % 10}"
        axes.errorbar(
            100 * _of(entry, "rho_adv"),
            100 * _of(entry, "accuracy"),
            xerr=100 * _spread(entry, "rho_adv"),
            yerr=100 * _spread(entry, "accuracy"),
            label=entry.row.title,
            linestyle="none",
            capsize=3,
            **style,
        )
    axes.set(xlabel="rho_adv, 1e-2 (DeepFool)", ylabel="test accuracy, %")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _png(figure)


def _of(entry: Measured, name: str) -> float:
    return statistics.fmean(entry.values(name))


def _spread(entry: Measured, name: str) -> float:
    values = entry.values(name)
    return (max(values) - min(values)) / 2
