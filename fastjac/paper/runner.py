"""Running the jobs of a plan in worker processes, with progress and resuming.

The parent alone writes results. Workers ignore Ctrl-C and are told to stop through an
event, so that each saves a checkpoint first; one whose parent has died ends itself. A
job is begun again from its checkpoints whatever ended the run before.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing.process import parent_process
from pathlib import Path
from typing import Any

import torch

import fastjac
from fastjac.harden import NonFiniteLossError
from fastjac.paper.jobs import Job, model_file
from fastjac.paper.progress import Display
from fastjac.paper.signals import Stopped
from fastjac.paper.source import Source
from fastjac.paper.store import Store
from fastjac.paper.work import Work


class RunError(RuntimeError):
    """A run that could not go on; what was finished is kept."""


@dataclass
class _Worker:
    """What a worker process keeps between jobs."""

    work: Work
    messages: Any
    current: str = ""

    def tell(self, phase: str, done: int, total: int) -> None:
        self.messages.put((self.current, phase, done, total))


_worker: _Worker


def _begin(
    folder: Path, source: Source, device: str, threads: int, messages: Any, stop: Any
) -> None:
    """Set a worker process up."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    work = Work(folder, source.open(), torch.device(device), stop=stop.is_set)
    _worker = _Worker(work, messages)
    work.report = _worker.tell


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(job: Job) -> dict[str, Any]:
    """Do a job in a worker; a divergence is a result too."""
    _worker.current = job.id
    try:
        return _worker.work(job)
    except NonFiniteLossError as error:
        return {"failed": str(error)}
    except KeyboardInterrupt:
        return {"stopped": True}


@dataclass
class Runner:
    """Runs what is still to do of a plan.

    Args:
        folder: of the run.
        store: of its results.
        source: of the images, which each worker reads.
        device: "cpu" or "cuda".
        processes: how many jobs at once.
        display: shows progress.
        command: the command line, kept with each result.
    """

    folder: Path
    store: Store
    source: Source
    device: str
    processes: int
    display: Display
    command: str = ""
    _running: dict[Future, Job] = field(default_factory=dict)

    def __call__(self, plan: Sequence[Job]) -> None:
        """Do all jobs of the plan that are not in the store.

        Raises:
            Stopped: Ctrl-C; every job is saved.
            RunError: a worker process died.
            fastjac.checkpoint.CheckpointError: nothing can be written any more.
        """
        todo: dict[str, Job] = {}
        for job in plan:
            if not self.finished(job):
                todo.setdefault(job.id, job)
        if not todo:
            return
        context = multiprocessing.get_context("spawn")
        messages, stop = context.Queue(), context.Event()
        threads = max(1, len(os.sched_getaffinity(0)) // self.processes)
        shared = (self.folder, self.source, self.device, threads, messages, stop)
        with (
            ProcessPoolExecutor(
                min(self.processes, len(todo)), context, _begin, shared
            ) as pool,
            self.display.over(list(todo.values())),
        ):
            try:
                self._all(pool, todo, messages)
            except BaseException as error:
                stop.set()
                self._settle(messages)
                if isinstance(error, KeyboardInterrupt):
                    raise Stopped("interrupted; every job is saved") from None
                if isinstance(error, BrokenProcessPool):
                    raise RunError(
                        "a worker process died (killed, or out of memory?); what was"
                        " finished is kept: run the same command again"
                    ) from error
                raise

    def finished(self, job: Job) -> bool:
        """Whether the job need not be run: its result, and its network, are there."""
        if job.id not in self.store.results:
            return False
        network = model_file(self.folder, job.network_id)
        return job.kind != "train" or network.is_file()

    def _all(
        self, pool: ProcessPoolExecutor, todo: dict[str, Job], messages: Any
    ) -> None:
        waiting = dict(todo)
        while waiting or self._running:
            unfinished = {*waiting, *(job.id for job in self._running.values())}
            for job in list(waiting.values()):
                if len(self._running) >= self.processes:
                    break
                if job.needs not in unfinished:
                    del waiting[job.id]
                    self._running[pool.submit(_do, job)] = job
            done, _ = wait(self._running, timeout=0.2, return_when=FIRST_COMPLETED)
            self._show(messages)
            for future in done:
                self._record(self._running.pop(future), future.result())

    def _settle(self, messages: Any) -> None:
        """Let the jobs that were running save themselves, and keep what they finish."""
        for future in list(self._running):
            while not future.done():
                wait([future], timeout=0.2)
                self._show(messages)
            job = self._running.pop(future)
            if future.exception() is None:
                self._record(job, future.result())

    def _record(self, job: Job, result: dict[str, Any]) -> None:
        if "stopped" in result:
            return
        record = {
            "id": job.id,
            "title": job.title,
            "job": asdict(job),
            "result": result,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "on": machine(self.device),
            "processes": self.processes,
            "command": self.command,
        }
        self.store.add(record)
        self.display.finished(job, result)

    def _show(self, messages: Any) -> None:
        while True:
            try:
                self.display.told(*messages.get_nowait())
            except queue.Empty:
                return


def machine(device: str) -> dict[str, Any]:
    """What a result was computed on."""
    name = platform.machine()
    if device == "cpu":
        name = _processor() or name
    elif torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    return {
        "device": device,
        "name": name,
        "cores": len(os.sched_getaffinity(0)),
        "fastjac": fastjac.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    models = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return models[0] if models else ""
