"""The data order of an epoch, so that it can be taken up in the middle again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastjac.checkpoint import CheckpointError, rng_state, set_rng_state


class RandomState:
    """The global generators, those of a ``DataLoader`` and its sampler, and ``own``."""

    def __init__(self, loader: Iterable[Any], own: Any = None) -> None:
        batch_sampler = getattr(loader, "batch_sampler", None)
        owners = (
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
        )
        found = [getattr(owner, "generator", None) for owner in owners]
        unique = {id(g): g for g in (*found, own) if isinstance(g, torch.Generator)}
        self._generators = list(unique.values())

    def get(self) -> dict[str, Any]:
        """Return all states as values that a checkpoint can hold."""
        states = [generator.get_state() for generator in self._generators]
        return {**rng_state(), "own": states}

    def set(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`get` returned."""
        set_rng_state(state)
        if len(state["own"]) != len(self._generators):
            raise CheckpointError(
                f"loader and penalty_options have {len(self._generators)} generator(s)"
                f" of their own, the interrupted run had {len(state['own'])}: make them"
                " the same way"
            )
        for generator, own in zip(self._generators, state["own"], strict=True):
            generator.set_state(own)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Context with all global generators seeded; their states are put back after it.

    With None nothing is seeded or put back.
    """
    if seed is None:
        yield
        return
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed (={seed}) must lie in 0..2**32-1")
    outside = rng_state()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        set_rng_state(outside)


def skip(batches: Iterator[Any], count: int, taken: Callable[[], Any]) -> None:
    """Leave out the ``count`` batches that the interrupted run had done.

    They are fetched, because a loader may draw random numbers for each of them;
    ``taken`` is called after each.
    """
    for done in range(count):
        if next(batches, None) is None:
            raise CheckpointError(
                f"loader gives only {done} batches, the checkpoint was written after"
                f" {count} of them: resume with the data of the interrupted run"
            )
        taken()


def unpack(batch: Any, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a batch on ``device``, or say what is wrong."""
    pair = isinstance(batch, (tuple, list)) and len(batch) == 2
    if not pair or not all(isinstance(part, Tensor) for part in batch):
        raise TypeError(
            "loader must give batches (x, y) of two tensors, got"
            f" {_shape_of(batch)}: wrap the dataset in a torch DataLoader, or map its"
            " batches to pairs"
        )
    x, y = batch
    if y.shape != x.shape[:1] or y.is_floating_point() or len(x) == 0:
        raise ValueError(
            f"loader must give labels y of shape (N,) with class indices for x"
            f" (N, ...), N >= 1; got x {tuple(x.shape)}, y {tuple(y.shape)} {y.dtype}"
        )
    return x.to(device, non_blocking=True), y.to(device, torch.long, non_blocking=True)


def _shape_of(batch: Any) -> str:
    if isinstance(batch, (tuple, list)):
        kinds = ", ".join(type(part).__name__ for part in batch[:4])
        return f"a {type(batch).__name__} of {len(batch)} ({kinds}...)"
    return f"a {type(batch).__name__}"
