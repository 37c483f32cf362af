"""An experiment from its command line's values to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastjac.paper.changes import Changes, with_groups
from fastjac.paper.jobs import Job, plan, unique
from fastjac.paper.presets import RECIPES
from fastjac.paper.progress import Display
from fastjac.paper.recipes import Recipe
from fastjac.paper.report import Report
from fastjac.paper.rows import GROUPS, rows
from fastjac.paper.runner import Runner
from fastjac.paper.signals import Stopped
from fastjac.paper.source import TITLES, Source
from fastjac.paper.store import Store, alone

PRESETS = ("full", "medium", "quick")


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        files: the report and its figures.
        finished: jobs that are finished, of those planned.
        planned: jobs of the whole recipe.
        failed: titles of those that diverged.
        stopped: whether Ctrl-C ended it.
    """

    files: tuple[Path, ...]
    finished: int
    planned: int
    failed: tuple[str, ...]
    stopped: bool


def reproduce(
    data: str | Path,
    dataset: str,
    out: str | Path,
    *,
    preset: str = "full",
    seeds: int | None = None,
    only: Sequence[str] = (),
    steps: int | None = None,
    lam: float | None = None,
    share: float | None = None,
    attacked: int | None = None,
    auto_attack: float | None = None,
    processes: int = 1,
    device: str = "auto",
    verify: bool = True,
    progress: bool = True,
    report_only: bool = False,
    command: str = "",
    recipe: Recipe | None = None,
) -> Outcome:
    """Run the paper's experiments on a data set, and write the report.

    What is finished already, in this folder, is not run again; what was interrupted,
    however, goes on from its last checkpoint.

    Args:
        data: folder with the data set's original files, or with a folder of its name.
        dataset: "mnist", "fashion-mnist" or "cifar-10".
        out: folder for results, networks and the report.
        preset: one of `PRESETS`.
        seeds: how many seeds of the main rows; None for the preset's.
        only: keys of rows, names of groups, or "cost", to run these only, also those
            that the preset leaves out.
        steps: steps of post-processing instead of the preset's.
        lam: weight of the Jacobian penalty instead of the preset's.
        share: share of a batch that FGSM perturbs in rows with adversarial training,
            instead of the preset's.
        attacked: how many test images all attacks see, instead of the preset's; a row
            that is trained already is only measured anew.
        auto_attack: l_inf size of AutoAttack, which needs torchattacks, instead of the
            preset's.
        processes: jobs at once.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        verify: insist on the published files, by their checksums.
        progress: show bars, or a line a job where there is no terminal.
        report_only: write the report of what is finished and run nothing.
        command: the command line to note with each result.
        recipe: settings other than the preset's.

    Returns:
        What there is now.

    Raises:
        ValueError: an unknown data set, preset or row.
        fastjac.data.DataError: files missing or damaged.
        fastjac.checkpoint.CheckpointError: ``out`` is in use or cannot be written to.
        RunError: a worker process died.
    """
    _check(dataset, preset, processes)
    changes = Changes(steps, lam, share, attacked, auto_attack)
    recipe = changes.applied(recipe or RECIPES[dataset, preset])
    recipe, more = with_groups(recipe, only)
    source = Source(Path(data), dataset, verify)
    images = source.open()
    jobs = plan(recipe, images, range(recipe.seeds if seeds is None else seeds))
    chosen = _chosen(jobs, recipe, only)
    folder = Path(out)
    stopped = False
    with alone(folder):
        store = Store(folder / "results.jsonl")
        if not report_only:
            place = _device(device)
            run = Runner(
                folder, store, source, place, processes, Display(progress), command
            )
            try:
                run(chosen)
            except Stopped:
                stopped = True
        report = Report(
            dataset, preset, recipe, images, jobs, store.results, changes.words, more
        )
        files = report.write(folder)
    planned = unique(jobs)
    done = [job for job in planned if job.id in store.results]
    failed = [j.title for j in done if "failed" in store.results[j.id]["result"]]
    return Outcome(tuple(files), len(done), len(planned), tuple(failed), stopped)


def _check(dataset: str, preset: str, processes: int) -> None:
    if dataset not in TITLES:
        raise ValueError(f"dataset (={dataset!r}) must be one of {', '.join(TITLES)}")
    known = [name for name in PRESETS if (dataset, name) in RECIPES]
    if preset not in known:
        raise ValueError(
            f"preset (={preset!r}) must be one of {', '.join(known)} for {dataset}"
        )
    if processes < 1:
        raise ValueError(f"processes (={processes}) must be at least 1")


def _chosen(jobs: Sequence[Job], recipe: Recipe, only: Sequence[str]) -> list[Job]:
    """The jobs that are asked for, and those that they need."""
    if not only:
        return list(jobs)
    keys = {row.key for row in rows(recipe)}
    unknown = [n for n in only if n not in keys | set(GROUPS) | {"cost", "train"}]
    if unknown:
        raise ValueError(
            f"only (={', '.join(unknown)}) names no row or group of this recipe; there"
            f" are {', '.join([*GROUPS, 'cost', 'train', *sorted(keys)])}"
        )
    wanted = [
        job
        for job in jobs
        if job.kind in only
        or (job.row is not None and {job.row.key, job.row.group} & set(only))
    ]
    needed = {job.needs for job in wanted}
    picked = {job.id for job in wanted}
    return [job for job in jobs if job.id in picked | needed]


def _device(name: str) -> str:
    if name != "auto":
        return str(torch.zeros((), device=name).device)
    return "cuda" if torch.cuda.is_available() else "cpu"
