"""The report: report.md and a report.html that needs no other file."""

from __future__ import annotations

import base64
import html
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastjac.checkpoint import write_atomic
from fastjac.data import ImageData
from fastjac.paper import figures, tables
from fastjac.paper.jobs import Job, unique
from fastjac.paper.published import REASONS
from fastjac.paper.recipes import Phase, Recipe
from fastjac.paper.rows import GROUPS, Row
from fastjac.paper.tables import Results, Table

CAPTIONS = {
    "figure-1-fgsm.png": "Figure 1: test accuracy under FGSM.",
    "figure-2-jsma.png": "Figure 2: test accuracy under JSMA, one pixel a step.",
    "defences.png": "Each defence; bars are half the range over seeds.",
    "lambda-front.png": "The front of accuracy and robustness over lambda.",
}


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        dataset: name on the command line.
        preset: name of the recipe.
        recipe: its settings.
        images: the data.
        plan: all jobs of the recipe.
        results: what is finished, by job id.
        changes: options of the command line that change the recipe.
        more: groups of the plan that the preset leaves out.
    """

    dataset: str
    preset: str
    recipe: Recipe
    images: ImageData
    plan: Sequence[Job]
    results: Results
    changes: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def write(self, folder: Path) -> list[Path]:
        """Write report.md, report.html and figures; return the paths.

        Raises:
            ImportError: matplotlib is not installed.
            fastjac.checkpoint.CheckpointError: the folder cannot be written to.
        """
        pictures = figures.all_figures(self.rows, self.images.name)
        files = {f"figures/{name}": content for name, content in pictures.items()}
        files["report.md"] = self._markdown(pictures).encode()
        files["report.html"] = self._html(pictures).encode()
        for name, content in files.items():
            _write(folder / name, content)
        return [folder / name for name in files]

    @property
    def rows(self) -> dict[str, tables.Measured]:
        """The rows with their numbers."""
        return tables.collect(self.plan, self.results)

    def command(self, row: Row | None = None) -> str:
        """The command line that gives a row, or everything."""
        words = ["fastjac", "paper", "--data", "DIR", "--dataset", self.dataset]
        words += ["--preset", self.preset, "--seeds", str(self._seeds())]
        words += [*self.changes, "--out", "REPORT"]
        if row is not None:
            words += ["--only", row.key]
        elif self.more:
            words += ["--only", ",".join(["cost", *self.recipe.groups])]
        return shlex.join(words)

    def _seeds(self) -> int:
        return len({job.seed for job in self.plan})

    def _tables(self) -> list[Table]:
        rows = self.rows
        groups = {entry.row.group for entry in rows.values()}
        found = [tables.main_table(rows, self.dataset), tables.norm_table(rows)]
        found += [
            tables.plain_table(rows, group, title)
            for group, title in GROUPS.items()
            if group != "main" and group in groups
        ]
        cost = [job for job in self.plan if job.kind == "cost"]
        found.append(tables.attack_table(rows, self.recipe.measure.auto_linf))
        if cost:
            result = self.results.get(cost[0].id, {}).get("result")
            found.append(tables.cost_table(result))
        found.append(self._phases())
        found.append(tables.settings_table(rows, self.recipe.eps, self.command))
        return found

    def _phases(self) -> Table:
        """Seconds of each finished job's parts."""
        lines = []
        for job in unique(self.plan):
            record = self.results.get(job.id)
            if record is None or job.kind == "cost" or "failed" in record["result"]:
                continue
            result, on = record["result"], record["on"]
            training = result["training"] or {"seconds": 0.0, "steps": 0}
            lines.append(
                (
                    job.title,
                    f"{training['steps']:,}",
                    f"{training['seconds']:.0f}",
                    f"{result['seconds'] - training['seconds']:.0f}",
                    f"{on['name']}, {on['cores']} cores, {record['processes']} at once",
                    result.get("network", ""),
                )
            )
        header = ("job", "steps", "training, s", "measuring, s", "on", "network")
        notes = (
            "Training over all sessions of the job, measuring in the last; it may have"
            " shared the cores. `fastjac.models.load` reads a network.",
        )
        return Table("Time of each job", header, tuple(lines), notes)

    def _opening(self) -> list[str]:
        jobs = unique(self.plan)
        finished = [job for job in jobs if job.id in self.results]
        recipe = self.recipe
        lines = [
            f"Data: {self.images}.",
            *self.images.notes,
            f"Preset `{self.preset}`, {self._seeds()} seed(s);"
            f" {len(finished)} of {len(jobs)} jobs are finished.",
            f"Network `{recipe.network}`{_options(recipe)}. Regular phase:"
            f" {_phase(recipe.train)}. Post-processing: {_phase(recipe.harden)}."
            f" FGSM in training: eps {recipe.eps:g}, {recipe.share:.0%} of the inputs.",
            f"Everything: `{self.command()}`",
            "Numbers are means over seeds ± their sample standard deviation; a single"
            " number is of one seed.",
        ]
        return [*lines, *([recipe.note] if recipe.note else [])]

    def _versions(self) -> str:
        found = {
            f"fastjac {on['fastjac']}, torch {on['torch']}, Python {on['python']},"
            f" {on['device']}: {on['name']}"
            for on in (record["on"] for record in self.results.values())
        }
        return "; ".join(sorted(found)) or "nothing has been run yet"

    def _markdown(self, pictures: Mapping[str, bytes]) -> str:
        parts = [f"# The paper's experiments on {self.images.name}", ""]
        for line in self._opening():
            parts += [line, ""]
        for number, table in enumerate(self._tables()):
            parts += [f"## {table.title}", "", *_markdown_table(table), ""]
            for note in table.notes:
                parts += [note, ""]
            if number == 0:
                for name in pictures:
                    parts += [f"![{CAPTIONS[name]}](figures/{name})", ""]
        parts += ["## What cannot be matched, and why", ""]
        parts += [f"* {what}: {why}." for what, why in REASONS]
        parts += ["", "## Versions", "", self._versions(), ""]
        return "\n".join(parts)

    def _html(self, pictures: Mapping[str, bytes]) -> str:
        title = f"The paper's experiments on {self.images.name}"
        parts = [_HEAD.replace("TITLE", html.escape(title))]
        parts += [f"<h1>{html.escape(title)}</h1>"]
        parts += [f"<p>{_inline(line)}</p>" for line in self._opening()]
        for number, table in enumerate(self._tables()):
            parts += [f"<h2>{html.escape(table.title)}</h2>", _html_table(table)]
            parts += [f"<p>{_inline(note)}</p>" for note in table.notes]
            if number == 0:
                parts += [_picture(name, png) for name, png in pictures.items()]
        parts.append("<h2>What cannot be matched, and why</h2><ul>")
        parts += [f"<li>{_inline(f'{what}: {why}.')}</li>" for what, why in REASONS]
        parts.append(f"</ul><h2>Versions</h2><p>{_inline(self._versions())}</p>")
        return "\n".join([*parts, "</body></html>", ""])


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda file: file.write(content))


def _options(recipe: Recipe) -> str:
    named = ", ".join(f"{name} {value}" for name, value in recipe.options.items())
    return f" with {named}" if named else ""


def _phase(phase: Phase) -> str:
    decay = f", weight decay {phase.weight_decay:g}" if phase.weight_decay else ""
    return (
        f"{phase.steps:,} steps of {phase.batch} images, {phase.optimizer}, learning"
        f" rate {phase.lr:g} falling to {phase.rate(phase.steps):g}{decay}"
        f"{_apart(phase)}"
    )


def _apart(phase: Phase) -> str:
    """What a phase does differently from the paper's."""
    dropout = "" if phase.dropout else ", dropout off"
    if phase.penalised == 1:
        return dropout
    return (
        f"{dropout}, penalties of several rows an image on the first"
        f" {phase.penalised:.0%} of a batch"
    )


def _markdown_table(table: Table) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [
        line(table.header),
        line(["---"] * len(table.header)),
        *(line(cells) for cells in table.lines),
    ]


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "".join(
        "<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in cells) + "</tr>"
        for cells in table.lines
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _inline(text: str) -> str:
    """Escaped text, with what stands between backquotes as code."""
    parts = [html.escape(part) for part in text.split("`")]
    return "".join(
        f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)
    )


def _picture(name: str, png: bytes) -> str:
    data: Any = base64.b64encode(png).decode()
    caption = html.escape(CAPTIONS[name])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; color: #22272b; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: 0.25em 0.7em; border-bottom: 1px solid #d8dcde; text-align: left;
  vertical-align: top; }
td:not(:first-child) { font-variant-numeric: tabular-nums; }
figure { margin: 1.5em 0; } img { max-width: 100%; }
code { font-size: 0.9em; background: #f2f4f5; padding: 0 0.2em; }
</style></head><body>"""
