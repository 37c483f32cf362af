"""Jobs: what is run once, named by a digest of everything its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastjac.data import ImageData
from fastjac.paper.recipes import Measure, Phase, Recipe
from fastjac.paper.rows import Row, rows

FORMAT = 1
"""Counted up when a job of the same description would give another result."""


@dataclass(frozen=True)
class Job:
    """A unit of work: regular training, a row of a table, or the timing of steps.

    Attributes:
        kind: "train", "row" or "cost".
        seed: of everything random in it.
        data: name and digest of the images.
        network, options: of `fastjac.models.create`.
        phase: the training it does, or None.
        row: the row it measures, or None.
        eps: FGSM step in training.
        measure: what it measures, or None.
        batch: images a step when it times steps.
        needs: id of the job whose network it starts from, or None.
    """

    kind: str
    seed: int
    data: tuple[str, str]
    network: str
    options: tuple[tuple[str, Any], ...]
    phase: Phase | None = None
    row: Row | None = None
    eps: float = 0.0
    measure: Measure | None = None
    batch: int = 0
    needs: str | None = None

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits, the same wherever the job is the same.

        Titles and groups of rows are left out: they change no result.
        """
        described = {**asdict(self), "format": FORMAT}
        if self.row is not None:
            for name in ("title", "group", "key"):
                described["row"].pop(name)
        text = json.dumps(described, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @cached_property
    def network_id(self) -> str:
        """Names the network that it ends with; jobs that train alike share one."""
        if self.phase is None and self.needs is not None:
            return self.needs
        return replace(self, measure=None).id

    @property
    def title(self) -> str:
        """What to call it while it runs."""
        named = self.kind if self.row is None else self.row.key
        return f"{named}, seed {self.seed}"


def model_file(folder: Path, network_id: str) -> Path:
    """Return where a run in ``folder`` keeps a trained network."""
    return folder / "models" / f"{network_id}.pt"


def plan(recipe: Recipe, images: ImageData, seeds: Sequence[int]) -> list[Job]:
    """All jobs of a recipe, each after the one it needs, the main rows first.

    Rows of ablations are run with the first seed only. Two rows that are trained the
    same way have jobs of the same id.
    """
    common: dict[str, Any] = {
        "data": (images.name, digest(images)),
        "network": recipe.network,
        "options": tuple(sorted(recipe.options.items())),
    }
    every = rows(recipe)
    jobs: list[Job] = []
    for seed in seeds:
        train = Job("train", seed, phase=recipe.train, **common)
        jobs.append(train)
        main = [row for row in every if row.group == "main"]
        jobs += [_row_job(row, recipe, train, common) for row in main]
    train = jobs[0]
    if recipe.cost_batch:
        cost = Job(
            "cost",
            train.seed,
            batch=recipe.cost_batch,
            needs=train.id,
            **common,
        )
        jobs.append(cost)
    rest = [row for row in every if row.group != "main"]
    jobs += [_row_job(row, recipe, train, common) for row in rest]
    return jobs


def unique(jobs: Sequence[Job]) -> list[Job]:
    """The first of the jobs of each id, in order."""
    first: dict[str, Job] = {}
    for job in jobs:
        first.setdefault(job.id, job)
    return list(first.values())


def _row_job(row: Row, recipe: Recipe, train: Job, common: dict[str, Any]) -> Job:
    return Job(
        "row",
        train.seed,
        phase=_phase(row, recipe),
        row=row,
        eps=recipe.eps if row.share else 0.0,
        measure=recipe.measure,
        needs=None if row.fresh else train.id,
        **common,
    )


def _phase(row: Row, recipe: Recipe) -> Phase | None:
    if not row.steps:
        return None
    like = recipe.train if row.fresh else recipe.harden
    values = {**asdict(like), "steps": row.steps}
    if row.fresh:
        values["batch"] = recipe.harden.batch
    return Phase(**values)


def digest(images: ImageData) -> str:
    """Twelve hexadecimal digits of all pixels and labels."""
    summed = hashlib.sha256()
    for part in (images.train, images.test):
        for tensor in part.tensors:
            summed.update(tensor.numpy().tobytes())
    return summed.hexdigest()[:12]
