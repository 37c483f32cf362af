"""Doing a job: training with checkpoints, measuring, returning plain numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import fastjac
from fastjac import models
from fastjac.data import ImageData
from fastjac.harden import TrainingResult
from fastjac.paper import costs
from fastjac.paper.defences import ONE_ROW, PENALTIES, of_first
from fastjac.paper.jobs import Job, model_file
from fastjac.paper.measures import measure
from fastjac.paper.recipes import Phase
from fastjac.paper.signals import Report, Watched

CHECKPOINT_STEPS = 50


class Work:
    """Runs jobs in a folder, each from where an earlier run of it was cut off.

    Args:
        folder: of the run; models and checkpoints are kept in it.
        images: the data.
        device: where to compute.
        report: told how far the job is.
        stop: returns whether to stop soon.
    """

    def __init__(
        self,
        folder: Path,
        images: ImageData,
        device: torch.device,
        report: Report = lambda *_: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.images, self.device = folder, images, device
        self.report, self.stop = report, stop

    def __call__(self, job: Job) -> dict[str, Any]:
        """Do the job and return its numbers, ready for JSON.

        Raises:
            fastjac.harden.TrainingInterrupted, Stopped: it was asked to stop.
            fastjac.harden.NonFiniteLossError: the training diverged.
            fastjac.checkpoint.CheckpointError: nothing can be written or read.
        """
        begin = time.perf_counter()
        if job.kind == "cost":
            found = costs.measure(self._network(job), self.images, job.batch, self)
        else:
            network = self._network(job)
            found = {"training": self._trained(job, network)}
            file = model_file(self.folder, job.network_id)
            found["network"] = file.relative_to(self.folder).as_posix()
            if found["training"]:  # its seconds count those of earlier sessions
                begin = time.perf_counter() - found["training"]["seconds"]
            found["measured"] = self._measured(job, network)
        found["seconds"] = round(time.perf_counter() - begin, 1)
        for path in self.folder.glob(f"checkpoints/{job.id}.*"):
            path.unlink(missing_ok=True)
        return found

    def _checkpoint(self, job: Job, name: str) -> Path:
        return self.folder / "checkpoints" / f"{job.id}.{name}"

    def _network(self, job: Job) -> models.Network:
        if job.needs is not None:
            return models.load(model_file(self.folder, job.needs))[0].to(self.device)
        torch.manual_seed(job.seed)
        options = {**dict(job.options), "classes": self.images.classes}
        return models.create(job.network, **options).to(self.device)

    def _trained(self, job: Job, network: models.Network) -> dict[str, Any] | None:
        """Train the network if the job says so; mean seconds a step and the rest.

        The network is kept: another job that trains alike only measures.
        """
        if job.phase is None:
            return None
        file = model_file(self.folder, job.network_id)
        if file.is_file():
            known, notes = models.load(file)
            if "training" in notes:
                network.load_state_dict(known.state_dict())
                return dict(notes["training"])
        kept = self._checkpoint(job, "trained")
        (record,) = self._train(job, network, job.phase, kept).history
        training = {
            **{k: round(v, 6) for k, v in asdict(record).items()},
            "seconds_per_step": round(record.seconds / record.steps, 5),
        }
        models.save(file, network, {"job": job.title, "training": training})
        kept.unlink(missing_ok=True)
        return training

    def _train(
        self, job: Job, network: models.Network, phase: Phase, kept: Path
    ) -> TrainingResult:
        row = job.row
        name = row.penalty if row is not None else None
        penalty = PENALTIES[name] if name else None
        if penalty is not None and name not in ONE_ROW:
            penalty = of_first(phase.penalised, penalty)
        data = self.images.train
        sampler = RandomSampler(data, num_samples=phase.steps * phase.batch)
        loader = DataLoader(data, batch_size=phase.batch, sampler=sampler)
        with phase.dropping(network):
            return fastjac.harden(
                network,
                Watched(loader, "training", self.report, self.stop),
                penalty=penalty,
                lam=row.lam if row is not None else 0.0,
                epochs=1,
                optimizer=phase.optimizer_of(network),
                adversarial=row.share if row is not None else 0.0,
                eps=job.eps or 0.1,
                bounds=(0.0, 1.0),
                checkpoint=kept,
                checkpoint_every=CHECKPOINT_STEPS,
                resume="auto",
                progress=False,
                seed=job.seed,
            )

    def _measured(self, job: Job, network: models.Network) -> dict[str, Any]:
        accuracy = self.accuracy(network, self.images.test)
        found: dict[str, Any] = {"accuracy": accuracy}
        if self.images.check is not None:
            found["accuracy_check"] = self.accuracy(network, self.images.check)
        if job.measure is not None:
            found |= measure(
                network,
                self.images.test,
                job.measure,
                checkpoint=self._checkpoint(job, "measured"),
                seed=job.seed,
                watch=self.watch,
            )
        return found

    def watch(self, loader: Any, phase: str) -> Watched:
        """The loader with progress and stopping."""
        return Watched(loader, phase, self.report, self.stop)

    def accuracy(self, network: models.Network, part: TensorDataset) -> float:
        """Share of the images that the network, in eval mode, classifies rightly."""
        network.eval()
        hits = 0
        with torch.no_grad():
            for x, y in self.watch(DataLoader(part, batch_size=500), "accuracy"):
                logits = network(x.to(self.device))
                hits += int((logits.argmax(1) == y.to(self.device)).sum())
        return hits / len(part)
