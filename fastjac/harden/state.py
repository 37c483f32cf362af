"""What a run's next step depends on, and the checkpoint file that holds it.

That is the weights, the optimizer, the position, and the state of every random
generator now and at the start of the epoch. To resume, the epoch is begun again from
its first generator state, the batches done are left out, and the generators are set to
where they were.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from fastjac import checkpoint as files
from fastjac.checkpoint import CheckpointError
from fastjac.harden.batches import RandomState
from fastjac.harden.records import Position


@dataclass
class State:
    """All that the next step depends on.

    Attributes:
        model: out of any wrapper.
        optimizer: of its weights.
        random: all generators.
        position: where the run stands.
        epoch_random: what ``random`` was at the start of the epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    random: RandomState
    position: Position = field(default_factory=Position)
    epoch_random: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return values that a checkpoint can hold; :meth:`load` reads them back."""
        begun = self.position.batch > 0
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": self.position.as_dict(),
            "random": self.random.get() if begun else self.epoch_random,
            "epoch_random": self.epoch_random,
        }

    def load(self, found: dict[str, Any]) -> None:
        """Take over what :meth:`as_dict` gave."""
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.position = Position.from_dict(found["position"])
        self.random.set(found["random"])
        self.epoch_random = found["epoch_random"]

    def unsound_weight(self) -> str | None:
        """Return the name of a weight that is not finite, if there is one."""
        weights = self.model.named_parameters()
        return next((n for n, w in weights if not bool(torch.isfinite(w).all())), None)


class Saves:
    """The checkpoint file of a run.

    Args:
        path: the file; None for a run that keeps nothing.
        settings: of the run; a checkpoint is taken up with the same ones only.
        writes: whether this process writes the file.
    """

    def __init__(
        self, path: str | Path | None, settings: dict[str, Any], writes: bool
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings, self.writes = settings, writes
        #: The step that was saved last, or resumed from.
        self.step: int | None = None

    @property
    def last(self) -> Path | None:
        """The last good checkpoint of this run."""
        return None if self.step is None else self.path

    def find(self, resume: bool | Literal["auto"]) -> dict[str, Any] | None:
        """Return the checkpoint to go on from, or None to start from the beginning."""
        if resume not in (True, False, "auto"):
            raise ValueError(f"resume (={resume!r}) must be True, False or 'auto'")
        if self.path is None:
            if resume is True:
                raise ValueError(
                    "resume=True needs checkpoint=, the file to go on from"
                )
            return None
        exists = self.path.exists()
        if resume is True or (resume == "auto" and exists):
            return files.load(self.path, "checkpoint")
        if exists and not files.load(self.path, "checkpoint")["finished"]:
            raise CheckpointError(
                f"{self.path} holds an unfinished run: resume=True goes on with"
                " it; delete the file to start over"
            )
        return None

    def restore(self, found: dict[str, Any], state: State) -> None:
        """Put a run where it was when a checkpoint was written."""
        saved, now = found["settings"], self.settings
        changed = [key for key in now if saved.get(key) != now[key]]
        if changed:
            listed = "; ".join(f"{k} was {saved.get(k)}, is {now[k]}" for k in changed)
            raise CheckpointError(
                f"{self.path} is of a run with other settings: {listed}. Resume"
                " with the same ones, or start over with another checkpoint file"
            )
        try:
            state.load(found)
        except CheckpointError:
            raise
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path} does not fit this model and optimizer: {error}"
            ) from error
        self.step = state.position.steps

    def save(self, state: State, finished: bool) -> None:
        """Write a checkpoint, if one is asked for."""
        self.step = state.position.steps
        if self.path is None or not self.writes:
            return
        payload = {"settings": self.settings, "finished": finished, **state.as_dict()}
        files.save(self.path, "checkpoint", payload)
