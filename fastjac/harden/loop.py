"""The loop that both phases run: steps, checkpoints, interruption, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fastjac.harden.arguments import check_counts, length, team_of
from fastjac.harden.bar import Bar
from fastjac.harden.batches import RandomState, seeded, skip, unpack
from fastjac.harden.interrupt import InterruptGuard, TrainingInterrupted
from fastjac.harden.modes import training
from fastjac.harden.objective import Objective, Terms
from fastjac.harden.records import Position, TrainingResult
from fastjac.harden.state import Saves, State
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
        self.checkpoint_every = checkpoint_every
        self.progress, self.seed = progress if self.team.leads else None, seed
        self.device = next(model.parameters()).device
        random = RandomState(loader, objective.options.get("generator"))
        self.state = State(_unwrapped(model), optimizer, random)
        self.saves = Saves(checkpoint, self._settings(), writes=self.team.leads)
        self._stopping = False

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.state.position

    def __call__(self, resume: bool | Literal["auto"]) -> TrainingResult:
        """Train, from the start or from the checkpoint."""
        try:
            return self._run(resume)
        except RuntimeError as error:
            if not self.team.lost(error):
                raise
            raise self.team.alone(f"{self.position}", error, self.saves.last) from error

    def _run(self, resume: bool | Literal["auto"]) -> TrainingResult:
        found = self.team.agreed(lambda: self.saves.find(resume))
        with (
            seeded(self.seed),
            training(self.model, freeze_batchnorm=self.freeze_batchnorm),
            InterruptGuard() as guard,
        ):
            self.state.epoch_random = self.team.agreed(self.state.random.get)
            if found is not None:
                self.saves.restore(found, self.state)
            with Bar(self.progress, self._total_steps(), self.position.steps) as bar:
                while self.position.epoch < self.epochs:
                    self._epoch(guard, bar)
            if self.saves.step != self.position.steps:
                self._save()
        self.optimizer.zero_grad(set_to_none=True)
        history = tuple(self.position.history)
        return TrainingResult(history, self.position.steps, self.saves.path)

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
        self._reseed(rank=0)
        self.position.next_epoch()
        self.state.epoch_random = self.state.random.get()

    def _batches(self, guard: InterruptGuard) -> Iterator[Any]:
        """Give the epoch's batches that are still to do."""
        set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.position.epoch)
        now = self.state.random.get()
        self.state.random.set(self.state.epoch_random)
        batches = iter(self.shares)
        if self.position.batch:
            skip(batches, self.position.batch, self.shares.taken)
            self.state.random.set(now)
        while not self._asked(guard):
            # The order of the epoch is drawn with its first batch, everywhere alike.
            if self.position.batch:
                self._reseed(self.team.rank)
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError:
                if guard.asked():  # Ctrl-C also reached the loader's workers
                    return
                raise
            if self.position.batch == 0:
                self._reseed(self.team.rank)
            yield batch

    def _reseed(self, rank: int) -> None:
        """Several processes draw their own numbers for each batch; one just goes on."""
        if self.team.group is not None:
            self.team.reseed(self.state.epoch_random, self.position.batch, rank)

    def _asked(self, guard: InterruptGuard) -> bool:
        """Whether to stop; several processes agree on that in a step."""
        return guard.asked() if self.team.group is None else self._stopping

    def _step(self, batch: Any, bar: Bar, guard: InterruptGuard) -> None:
        begin = time.perf_counter()
        whole, mark = self.shares.taken()
        x, y = unpack(batch, self.device)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._terms(x, y, None if whole else self.team.group)
        terms.loss.backward()
        hits = (terms.logits.detach().argmax(1) == y).sum()
        *values, samples, marks, asked = self._totals(
            (terms.loss, terms.cross_entropy, terms.penalty),
            (hits, len(x), mark, guard.asked()),
        )
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

    def _terms(self, x: Tensor, y: Tensor, group: Any) -> Terms:
        try:
            return self.objective(self.trained, x, y, group)
        except ValueError as error:
            # A penalty refuses logits that are not finite; so do attacks.
            with torch.no_grad():
                if bool(torch.isfinite(self.state.model(x)).all()):
                    raise
            self._not_finite(f"logits are not finite ({error})", error)

    def _totals(self, means: Sequence[Any], counts: Sequence[Any]) -> list[float]:
        """Return means over the team and sums over it, all in one exchange."""
        sums = torch.stack(
            [
                torch.as_tensor(each, device=self.device).detach().double()
                for each in (*means, *counts)
            ]
        )
        sums = self.team.total(sums)
        sums[: len(means)] /= self.team.size
        values: list[float] = sums.tolist()
        return values

    def _save(self) -> None:
        """Write a checkpoint, if one is asked for and the weights are sound."""
        unsound = self.state.unsound_weight()
        if unsound is not None:
            self._not_finite(f"weight {unsound!r} is no longer finite")
        self.saves.save(self.state, finished=self.position.epoch >= self.epochs)

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
        path = self.saves.path
        where = "nothing was saved, since no checkpoint= was given"
        if path is not None:
            where = f"saved to {path}; the same call with resume=True goes on"
        raise TrainingInterrupted(f"interrupted at {self.position}: {where}", path)

    def _not_finite(self, what: str, cause: Exception | None = None) -> NoReturn:
        last = self.saves.last
        where = "there is no checkpoint to go back to"
        if last is not None:
            where = f"the last good checkpoint is {last} (step {self.saves.step})"
        raise NonFiniteLossError(
            f"{what} after {self.position}: lower the learning rate or lam"
            f" (={self.objective.lam}), or look for non-finite inputs; {where}",
            last,
        ) from cause

    def _total_steps(self) -> int | None:
        batches = length(self.loader)
        return None if batches is None else batches * self.epochs


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model itself, out of its DistributedDataParallel wrapper."""
    if isinstance(model, DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model
