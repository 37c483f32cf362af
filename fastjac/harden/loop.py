"""The loop that both phases run: steps, checkpoints, interruption, resuming.

A checkpoint holds everything the next step depends on: weights, optimizer, the state of
every random generator now and at the start of the epoch, and the number of batches
done. To resume, the epoch is begun again from its first generator state, the batches
done are left out, and the generators are set to where they were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fastjac import checkpoint as files
from fastjac.harden.arguments import check_counts, length, team_of
from fastjac.harden.bar import Bar
from fastjac.harden.batches import RandomState, seeded, skip, unpack
from fastjac.harden.interrupt import InterruptGuard, TrainingInterrupted
from fastjac.harden.modes import training
from fastjac.harden.objective import Objective
from fastjac.harden.records import Position, TrainingResult
from fastjac.harden.team import Shares


class NonFiniteLossError(RuntimeError):
    """The loss or a weight became NaN or infinite.

    Attributes:
        checkpoint: the last good checkpoint, or None if there is none.
    """

    def __init__(self, message: str, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


class Run:
    """One training run; calling it trains the model. See :func:`fastjac.harden`."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        objective: Objective,
        optimizer: Optimizer,
        *,
        epochs: int,
        freeze_batchnorm: bool,
        checkpoint: str | Path | None,
        checkpoint_every: int,
        progress: str | None,
        seed: int | None,
        process_group: Any = None,
    ) -> None:
        check_counts(epochs, checkpoint_every)
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"loader (a {type(loader).__name__}) must give batches (x, y); wrap a"
                " dataset in torch.utils.data.DataLoader"
            )
        self.team = team_of(model, process_group)
        self.model, self.loader, self.objective = model, loader, objective
        self.trained = self.team.wrapped(model)
        self.shares = Shares(loader, self.team)
        self.optimizer, self.epochs = optimizer, epochs
        self.freeze_batchnorm = freeze_batchnorm
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.checkpoint_every = checkpoint_every
        self.progress, self.seed = progress if self.team.leads else None, seed
        self.device = next(model.parameters()).device
        self.position = Position()
        self.random = RandomState(loader, objective.options.get("generator"))
        self._epoch_random: dict[str, Any] = {}
        self._saved_step: int | None = None
        self._stopping = False

    def __call__(self, resume: bool | Literal["auto"]) -> TrainingResult:
        """Train, from the start or from the checkpoint."""
        try:
            return self._run(resume)
        except RuntimeError as error:
            if not self.team.lost(error):
                raise
            where = self.checkpoint if self._saved_step is not None else None
            raise self.team.alone(f"{self.position}", error, where) from error

    def _run(self, resume: bool | Literal["auto"]) -> TrainingResult:
        found = self.team.agreed(lambda: self._find_checkpoint(resume))
        with (
            seeded(self.seed),
            training(self.model, freeze_batchnorm=self.freeze_batchnorm),
            InterruptGuard() as guard,
        ):
            self._epoch_random = self.team.agreed(self.random.get)
            if found is not None:
                self._restore(found)
            with Bar(self.progress, self._total_steps(), self.position.steps) as bar:
                while self.position.epoch < self.epochs:
                    self._epoch(guard, bar)
            if self._saved_step != self.position.steps:
                self._save()
        self.optimizer.zero_grad(set_to_none=True)
        history = tuple(self.position.history)
        return TrainingResult(history, self.position.steps, self.checkpoint)

    def _epoch(self, guard: InterruptGuard, bar: Bar) -> None:
        for batch in self._batches(guard):
            self._step(batch, bar, guard)
            if self._stopping:
                self._interrupted()
            if self.position.steps % self.checkpoint_every == 0:
                self._save()
        if self._asked(guard):
            self._interrupted()
        if self.position.batch == 0:
            raise ValueError(
                f"loader gave no batch in epoch {self.position.epoch + 1}: it must not"
                " be empty, and must start anew each time it is iterated"
            )
        if self.team.group is not None:
            self.team.reseed(self._epoch_random, self.position.batch, rank=0)
        self.position.next_epoch()
        self._epoch_random = self.random.get()

    def _batches(self, guard: InterruptGuard) -> Iterator[Any]:
        """Give the epoch's batches that are still to do."""
        set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.position.epoch)
        now = self.random.get()
        self.random.set(self._epoch_random)
        batches = iter(self.shares)
        if self.position.batch:
            skip(batches, self.position.batch, self.shares.taken)
            self.random.set(now)
        while not self._asked(guard):
            # The order of the epoch is drawn with its first batch, everywhere alike.
            if self.position.batch:
                self._reseed()
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if guard.asked():  # Ctrl-C also reached the loader's workers
                    return
                raise
            if self.position.batch == 0:
                self._reseed()
            yield batch

    def _reseed(self) -> None:
        if self.team.group is not None:
            self.team.reseed(self._epoch_random, self.position.batch, self.team.rank)

    def _asked(self, guard: InterruptGuard) -> bool:
        """Whether to stop; several processes agree on that in a step."""
        return guard.asked() if self.team.group is None else self._stopping

    def _step(self, batch: Any, bar: Bar, guard: InterruptGuard) -> None:
        begin = time.perf_counter()
        whole, mark = self.shares.taken()
        x, y = unpack(batch, self.device)
        group = None if whole else self.team.group
        self.optimizer.zero_grad(set_to_none=True)
        try:
            terms = self.objective(self.trained, x, y, group)
        except ValueError as error:
            # A penalty refuses logits that are not finite; so do attacks.
            with torch.no_grad():
                if bool(torch.isfinite(self._plain_model()(x)).all()):
                    raise
            self._not_finite(f"logits are not finite ({error})", error)
        terms.loss.backward()
        hits = (terms.logits.detach().argmax(1) == y).sum()
        parts = (terms.loss, terms.cross_entropy, terms.penalty)
        counts = (hits, len(x), mark, guard.asked())
        sums = torch.stack(
            [torch.as_tensor(v, device=self.device).double() for v in (*parts, *counts)]
        )
        sums = self.team.total(sums.detach())
        sums[:3] /= self.team.size
        *values, samples, marks, asked = sums.tolist()
        self._stopping = asked > 0
        if marks != self.team.size * mark:
            raise ValueError(
                "loader gives other batches in this process than in others: give its"
                " sampler a generator of the same seed in every process"
            )
        if not math.isfinite(values[0]):
            self._not_finite(
                f"loss became {values[0]} (cross-entropy {values[1]:.4g}, penalty"
                f" {values[2]:.4g})"
            )
        self.optimizer.step()
        if whole:  # each process has counted all of it
            values[3], samples = values[3] / self.team.size, len(x)
        self.position.add(values, int(samples), time.perf_counter() - begin)
        bar.show(self.position, values)

    def _save(self) -> None:
        """Write a checkpoint, if one is asked for and the weights are sound."""
        for name, weight in self._plain_model().named_parameters():
            if not bool(torch.isfinite(weight).all()):
                self._not_finite(f"weight {name!r} is no longer finite")
        self._saved_step = self.position.steps
        if self.checkpoint is None or not self.team.leads:
            return
        payload = {
            "settings": self._settings(),
            "finished": self.position.epoch >= self.epochs,
            "model": self._plain_model().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": self.position.as_dict(),
            "random": self.random.get() if self.position.batch else self._epoch_random,
            "epoch_random": self._epoch_random,
        }
        files.save(self.checkpoint, "checkpoint", payload)

    def _find_checkpoint(self, resume: bool | Literal["auto"]) -> dict[str, Any] | None:
        """Return the checkpoint to go on from, or None to start from the beginning."""
        if resume not in (True, False, "auto"):
            raise ValueError(f"resume (={resume!r}) must be True, False or 'auto'")
        if self.checkpoint is None:
            if resume is True:
                raise ValueError(
                    "resume=True needs checkpoint=, the file to go on from"
                )
            return None
        exists = self.checkpoint.exists()
        if resume is True or (resume == "auto" and exists):
            return files.load(self.checkpoint, "checkpoint")
        if exists and not files.load(self.checkpoint, "checkpoint")["finished"]:
            raise files.CheckpointError(
                f"{self.checkpoint} holds an unfinished run: resume=True goes on with"
                " it; delete the file to start over"
            )
        return None

    def _restore(self, found: dict[str, Any]) -> None:
        saved, now = found["settings"], self._settings()
        changed = [key for key in now if saved.get(key) != now[key]]
        if changed:
            listed = "; ".join(f"{k} was {saved.get(k)}, is {now[k]}" for k in changed)
            raise files.CheckpointError(
                f"{self.checkpoint} is of a run with other settings: {listed}. Resume"
                " with the same ones, or start over with another checkpoint file"
            )
        try:
            self._plain_model().load_state_dict(found["model"])
            self.optimizer.load_state_dict(found["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise files.CheckpointError(
                f"{self.checkpoint} does not fit this model and optimizer: {error}"
            ) from error
        self.position = Position.from_dict(found["position"])
        self.random.set(found["random"])
        self._epoch_random = found["epoch_random"]
        self._saved_step = self.position.steps

    def _settings(self) -> dict[str, Any]:
        defaults = sorted(self.optimizer.defaults.items())
        return {
            **self.objective.describe(),
            "optimizer": f"{type(self.optimizer).__name__} {defaults}",
            "batches": length(self.loader),
            "freeze_batchnorm": self.freeze_batchnorm,
            "seed": self.seed,
        }

    def _interrupted(self) -> NoReturn:
        self._save()
        where = "nothing was saved, since no checkpoint= was given"
        if self.checkpoint is not None:
            where = (
                f"saved to {self.checkpoint}; the same call with resume=True goes on"
            )
        raise TrainingInterrupted(
            f"interrupted at {self.position}: {where}", self.checkpoint
        )

    def _not_finite(self, what: str, cause: Exception | None = None) -> NoReturn:
        kept = None if self._saved_step is None else self.checkpoint
        where = "there is no checkpoint to go back to"
        if kept is not None:
            where = f"the last good checkpoint is {kept} (step {self._saved_step})"
        raise NonFiniteLossError(
            f"{what} after {self.position}: lower the learning rate or lam"
            f" (={self.objective.lam}), or look for non-finite inputs; {where}",
            kept,
        ) from cause

    def _plain_model(self) -> nn.Module:
        """The model itself, out of its DistributedDataParallel wrapper."""
        if isinstance(self.model, DistributedDataParallel):
            inner: nn.Module = self.model.module
            return inner
        return self.model

    def _total_steps(self) -> int | None:
        batches = length(self.loader)
        return None if batches is None else batches * self.epochs
