"""The report's tables as data, and what they say in a sentence."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastjac.paper.defences import FORMULAS
from fastjac.paper.jobs import Job
from fastjac.paper.published import NUMBERS, TABLES
from fastjac.paper.rows import Row

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: what it shows.
        header: names of the columns.
        lines: the cells of each row.
        notes: sentences below it.
    """

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass
class Measured:
    """A row with the numbers of the seeds it was run with.

    Attributes:
        row: the row.
        numbers: ``measured`` of each finished seed.
        training: ``training`` of each finished seed.
        failed: why it has no numbers, if it diverged.
        planned: how many seeds it is to be run with.
    """

    row: Row
    numbers: list[Mapping[str, Any]] = field(default_factory=list)
    training: list[Mapping[str, Any]] = field(default_factory=list)
    failed: str = ""
    planned: int = 0

    def values(self, name: str) -> list[float]:
        """A number of each seed."""
        return [float(n[name]) for n in self.numbers if name in n]

    def mean(self, name: str) -> float | None:
        """Its mean over the seeds, None before any is finished."""
        values = self.values(name)
        return statistics.fmean(values) if values else None

    def text(self, name: str, scale: float = 100.0, digits: int = 2) -> str:
        """Mean and, with more than one seed, sample standard deviation."""
        values = [scale * value for value in self.values(name)]
        if not values:
            return "failed" if self.failed else "not run"
        text = f"{statistics.fmean(values):.{digits}f}"
        if len(values) > 1:
            text += f" ± {statistics.stdev(values):.{digits}f}"
        return text

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Mean accuracy of an attack by its eps."""
        curves = [n[name] for n in self.numbers if n.get(name)]
        if not curves:
            return []
        sizes = [eps for eps, _ in curves[0]]
        means = [statistics.fmean(c[i][1] for c in curves) for i in range(len(sizes))]
        return list(zip(sizes, means, strict=True))


def collect(plan: Sequence[Job], results: Results) -> dict[str, Measured]:
    """The rows of the plan by key, with the numbers there are."""
    found: dict[str, Measured] = {}
    for job in plan:
        if job.row is None:
            continue
        entry = found.setdefault(job.row.key, Measured(job.row))
        entry.planned += 1
        result = results.get(job.id, {}).get("result")
        if result is None:
            continue
        if "failed" in result:
            entry.failed = result["failed"]
            continue
        entry.numbers.append(result["measured"])
        if result["training"]:
            entry.training.append(result["training"])
    return found


def of_group(rows: Mapping[str, Measured], group: str) -> list[Measured]:
    """The rows of a group, in order."""
    return [entry for entry in rows.values() if entry.row.group == group]


def main_table(rows: Mapping[str, Measured], dataset: str) -> Table:
    """Table 3 or 4 beside the published numbers."""
    published = TABLES.get(dataset, {})
    lines = []
    for entry in of_group(rows, "main"):
        line = [entry.row.title]
        known = published.get(entry.row.key)
        for name, value in (
            ("accuracy", known.accuracy if known else None),
            ("rho_adv", known.rho_adv if known else None),
        ):
            line.append(entry.text(name))
            if published:
                line += _beside(entry.mean(name), value)
        line += [_weight(entry.row), f"{len(entry.numbers)} of {entry.planned}"]
        lines.append(tuple(line))
    beside = ("paper", "difference") if published else ()
    header = ("defence", "accuracy, %", *beside, "rho_adv, 1e-2", *beside)
    title = NUMBERS.get(dataset, "As Tables 3 and 4")
    return Table(
        f"{title}: test accuracy and robustness to DeepFool",
        (*header, "lambda", "seeds"),
        tuple(lines),
        (ordering(of_group(rows, "main")),),
    )


def ordering(entries: Sequence[Measured]) -> str:
    """Whether rho_adv rises from row to row as in the paper, in a sentence."""
    means = [(e.row.title, e.mean("rho_adv")) for e in entries]
    known = [(title, value) for title, value in means if value is not None]
    if len(known) < len(means):
        return f"Ordering: {len(known)} of {len(means)} rows have been run."
    broken = [
        f"{title} ({100 * value:.2f}) is not above {before} ({100 * least:.2f})"
        for (before, least), (title, value) in itertools.pairwise(known)
        if value <= least
    ]
    if not broken:
        return "Ordering: rho_adv rises from row to row, as in the paper."
    return "Ordering: as in the paper, except that " + "; ".join(broken) + "."


def _beside(value: float | None, published: float | None) -> list[str]:
    if published is None:
        return ["", ""]
    difference = "" if value is None else f"{100 * value - published:+.2f}"
    return [f"{published:.2f}", difference]


def _weight(row: Row) -> str:
    return f"{row.lam:g}" if row.penalty else ""


def norm_table(rows: Mapping[str, Measured]) -> Table:
    """Table 1: mean Jacobian norms at clean and at perturbed inputs."""
    base = rows["none"].mean("jacobian_norm") if "none" in rows else None
    lines = []
    for entry in of_group(rows, "main"):
        mean = entry.mean("jacobian_norm")
        share = f"{mean / base:.3f}" if mean is not None and base else ""
        clean = entry.text("jacobian_norm", 1.0, 3)
        perturbed = entry.text("jacobian_norm_adversarial", 1.0, 3)
        lines.append((entry.row.title, clean, perturbed, share))
    return Table(
        "Table 1: mean Frobenius norm of the logits' Jacobian",
        ("defence", "clean inputs", "DeepFool inputs", "share of no defence, clean"),
        tuple(lines),
    )


def plain_table(rows: Mapping[str, Measured], group: str, title: str) -> Table:
    """A group's rows with accuracy, rho_adv and the cost of a step."""
    entries = of_group(rows, group)
    if group == "regular" and "jacobian" in rows:
        entries = [*entries, rows["jacobian"]]
    if group == "beyond":
        entries = [rows[k] for k in ("none", "jacobian") if k in rows] + entries
    return Table(
        title,
        ("row", "lambda", "steps", "accuracy, %", "rho_adv, 1e-2", "seconds a step"),
        tuple(
            (
                entry.row.title,
                _weight(entry.row),
                f"{entry.row.steps:,}" if entry.row.steps else "",
                entry.text("accuracy"),
                entry.text("rho_adv"),
                _step_seconds(entry),
            )
            for entry in entries
        ),
    )


def _step_seconds(entry: Measured) -> str:
    values = [float(t["seconds_per_step"]) for t in entry.training]
    return f"{statistics.fmean(values):.3f}" if values else ""


def attack_table(rows: Mapping[str, Measured], auto_attack: float) -> Table:
    """Accuracy in percent under each attack, one column an attack and size.

    ``auto_attack`` is the size that was asked for, 0 if none was.
    """
    entries = [e for e in rows.values() if e.row.group in ("main", "beyond")]
    names = {
        "fgsm": "FGSM",
        "jsma": "JSMA",
        "pgd_linf": "PGD l_inf",
        "pgd_l2": "PGD l2",
        "autoattack": "AutoAttack l_inf",
    }
    columns: list[tuple[str, float]] = []
    for name in names:
        for entry in entries:
            columns += [
                (name, eps)
                for eps, _ in entry.curve(name)
                if eps and (name, eps) not in columns
            ]
    lines = [
        (entry.row.title, *(_at(entry, name, eps) for name, eps in columns))
        for entry in entries
        if entry.numbers
    ]
    header = tuple(f"{names[name]} {eps:.3g}" for name, eps in columns)
    notes = _images_notes(entries)
    if notes and auto_attack and ("autoattack", auto_attack) not in columns:
        notes = (*notes, "AutoAttack was not run: torchattacks was not installed.")
    return Table("Accuracy under attack, %", ("defence", *header), tuple(lines), notes)


def _at(entry: Measured, name: str, eps: float) -> str:
    found = dict(entry.curve(name)).get(eps)
    return "" if found is None else f"{100 * found:.1f}"


def _images_notes(entries: Sequence[Measured]) -> tuple[str, ...]:
    for entry in entries:
        for numbers in entry.numbers:
            return (
                f"DeepFool and FGSM: the first {numbers['images']:,} test images; all"
                f" other attacks: the first {numbers['slow_images']:,}."
                " Sizes are in units of pixels in 0..1.",
            )
    return ()


def cost_table(found: Mapping[str, Any] | None) -> Table:
    """Seconds of a post-processing step by method."""
    costs = found["costs"] if found else []
    base = costs[0]["seconds_per_step"] if costs else 1.0
    lines = tuple(
        (
            cost["method"],
            f"{1000 * cost['seconds_per_step']:.0f}",
            f"{cost['seconds_per_step'] / base:.1f}",
        )
        for cost in costs
    )
    notes = ("not run",)
    if found:
        notes = (
            f"Batch of {found['batch']}, {found['threads']} thread(s), forward, loss"
            " and backward without the optimizer; median of 3 after one to warm up.",
        )
    header = ("step", "milliseconds", "times cross-entropy alone")
    return Table("Cost of a post-processing step", header, lines, notes)


def settings_table(
    rows: Mapping[str, Measured], eps: float, command: Callable[[Row], str]
) -> Table:
    """What each row adds to the training, and the command that reproduces it."""

    def term(row: Row) -> str:
        found = [FORMULAS[row.penalty]] if row.penalty else []
        if row.share:
            found.append(f"FGSM of {eps:g} on {row.share:.0%} of the inputs")
        return "; ".join(found) or "nothing"

    return Table(
        "Each row's term and command",
        ("row", "term", "command"),
        tuple(
            (
                entry.row.title,
                term(entry.row),
                f"`{command(entry.row)}`",
            )
            for entry in rows.values()
        ),
    )
