"""The progress of a run: a bar over all jobs, and one for each that is running."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastjac.paper.jobs import Job


class Display:
    """Shows a run on the terminal, or as a line a job where there is none.

    Args:
        shown: False for silence.
    """

    def __init__(self, shown: bool = True) -> None:
        self.shown = shown
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._jobs: dict[str, Job] = {}
        self._begun: dict[str, float] = {}
        self._all: Any = None

    @contextmanager
    def over(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Context of a run of these jobs."""
        self._jobs = {job.id: job for job in jobs}
        if not self.shown or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = Progress(
            TextColumn("{task.description:<44}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=600,
        )
        with self._bars:
            self._all = self._bars.add_task("all jobs", total=len(jobs))
            yield
        self._bars = None

    def told(self, job_id: str, phase: str, done: int, total: int) -> None:
        """A worker has come so far with a phase of a job."""
        self._begun.setdefault(job_id, time.monotonic())
        if self._bars is None:
            return
        name = f"{self._jobs[job_id].title}: {phase}"
        shown = self._tasks.get(job_id)
        if shown is None or shown[1] != phase:
            if shown is not None:
                self._bars.remove_task(shown[0])
            self._tasks[job_id] = (self._bars.add_task(name, total=total), phase)
        self._bars.update(self._tasks[job_id][0], completed=done, total=total)

    def finished(self, job: Job, result: dict[str, Any]) -> None:
        """A job is done."""
        line = f"{job.title}: {summary(result)}"
        if self._bars is not None:
            shown = self._tasks.pop(job.id, None)
            if shown is not None:
                self._bars.remove_task(shown[0])
            self._bars.console.print(line, highlight=False)
            self._bars.advance(self._all)
        elif self.shown:
            print(line, file=sys.stderr, flush=True)


def summary(result: dict[str, Any]) -> str:
    """A job's result in a line."""
    if "failed" in result:
        return f"failed: {result['failed']}"
    found = [f"{result['seconds']:.0f} s"]
    measured = result.get("measured", {})
    if "accuracy" in measured:
        found.append(f"accuracy {measured['accuracy']:.2%}")
    if "rho_adv" in measured:
        found.append(f"rho_adv {100 * measured['rho_adv']:.2f}e-2")
    return ", ".join(found)
