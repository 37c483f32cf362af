"""What a training run tells: a record an epoch, and where the run stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over its steps, taken before each step's update.

    Attributes:
        epoch: number, from 1.
        steps: batches in the epoch.
        loss, cross_entropy, penalty: means over the batches; the penalty is not yet
            multiplied by ``lam``.
        accuracy: share of the inputs, 0 to 1, as trained on (dropout, FGSM inputs).
        seconds: time spent in steps.
    """

    epoch: int
    steps: int
    loss: float
    cross_entropy: float
    penalty: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """What :func:`fastjac.harden` and ``train`` return; prints as a table.

    Attributes:
        history: one record an epoch, also of the epochs before a resume.
        steps: steps of all epochs.
        checkpoint: file of the last checkpoint, or None.
    """

    history: tuple[EpochRecord, ...]
    steps: int
    checkpoint: Path | None

    def __str__(self) -> str:
        lines = ["epoch  steps      loss        CE   penalty  accuracy  seconds"]
        for r in self.history:
            lines.append(
                f"{r.epoch:5d} {r.steps:6d} {r.loss:9.4f} {r.cross_entropy:9.4f}"
                f" {r.penalty:9.3f} {r.accuracy:9.4f} {r.seconds:8.1f}"
            )
        return "\n".join(lines)


@dataclass
class Position:
    """Where a run stands between two steps; saved with each checkpoint."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the epoch in progress
    steps: int = 0  # finished steps of the whole run
    loss: float = 0.0  # sums over the batches of the epoch in progress
    cross_entropy: float = 0.0
    penalty: float = 0.0
    correct: int = 0
    samples: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)

    def add(self, values: list[float], samples: int, seconds: float) -> None:
        """Count a finished step: its loss, cross-entropy, penalty and hits."""
        loss, cross_entropy, penalty, correct = values
        self.loss += loss
        self.cross_entropy += cross_entropy
        self.penalty += penalty
        self.correct += int(correct)
        self.samples += samples
        self.seconds += seconds
        self.batch += 1
        self.steps += 1

    def next_epoch(self) -> None:
        """Close the epoch in progress into a record of the history."""
        record = EpochRecord(
            epoch=self.epoch + 1,
            steps=self.batch,
            loss=self.loss / self.batch,
            cross_entropy=self.cross_entropy / self.batch,
            penalty=self.penalty / self.batch,
            accuracy=self.correct / self.samples,
            seconds=self.seconds,
        )
        self.history.append(record)
        self.epoch += 1
        self.batch = self.correct = self.samples = 0
        self.loss = self.cross_entropy = self.penalty = self.seconds = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """Read what :meth:`as_dict` gave."""
        history = [EpochRecord(**record) for record in values["history"]]
        return cls(**{**values, "history": history})

    def __str__(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.batch}"
