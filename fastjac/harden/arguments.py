"""Checks of what a training run is given."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastjac.harden.team import Team


def team_of(model: nn.Module, process_group: Any) -> Team:
    """Return the processes that train a model; a DDP model knows its own."""
    if process_group is None and isinstance(model, DistributedDataParallel):
        process_group = model.process_group
    team = Team(process_group)
    if any(hasattr(weight, "full_tensor") for weight in model.parameters()):
        raise TypeError(
            "model is sharded by fully_shard, whose weights the checkpoints of this"
            " function do not hold: give the model itself, or write the loop around"
            " fastjac.jacobian_penalty"
        )
    return team


def check_counts(epochs: int, checkpoint_every: int) -> None:
    """Raise unless both are positive whole numbers."""
    for name, value in (("epochs", epochs), ("checkpoint_every", checkpoint_every)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} (={value!r}) must be a whole number, at least 1")


def length(loader: Any) -> int | None:
    """Return how many batches a loader gives, if it says so."""
    try:
        return len(loader)
    except TypeError:
        return None
