"""The processes that train one model together: shares of batches, and agreement.

Every process goes through the same batches in the same order and takes its share of
each, so that a run does the same steps with any number of processes, and a checkpoint
says nothing of that number. Random numbers that may differ (dropout, augmentation) come
from the epoch's first random state, the number of the batch and that of the process.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from fastjac import parallel

T = TypeVar("T")


class ProcessLostError(RuntimeError):
    """Another process of the run ended, or cannot be reached any more."""


class Team:
    """This process among those of a group; alone without one.

    Args:
        process_group: a torch.distributed group, "world", or None.
    """

    def __init__(self, process_group: Any = None) -> None:
        self.group = parallel.resolved(process_group)
        together = self.group is not None
        self.size = dist.get_world_size(self.group) if together else 1
        self.rank = dist.get_rank(self.group) if together else 0

    @property
    def leads(self) -> bool:
        """Whether this process shows progress and writes files."""
        return self.rank == 0

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return the model as it is trained: its gradients averaged over the team."""
        if self.group is None or isinstance(model, DistributedDataParallel):
            return model
        return DistributedDataParallel(model, process_group=self.group)

    def agreed(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives, or raises, in the process that leads."""
        if self.group is None:
            return make()
        found: list[Any] = [None, None]
        if self.leads:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = error
        source = dist.get_global_rank(self.group, 0)
        dist.broadcast_object_list(found, src=source, group=self.group)
        if found[1] is not None:
            raise found[1]
        result: T = found[0]
        return result

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over the team of a tensor of float64 values."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
        return values

    def reseed(self, epoch_random: dict[str, Any], batch: int, rank: int) -> None:
        """Set all generators for a process's share of a batch."""
        state = epoch_random["torch"].numpy().tobytes()
        key = hashlib.sha256(state + f" {batch} {rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(key[:8]) >> 1)
        np.random.seed(int.from_bytes(key[8:12]))
        random.seed(key)

    def lost(self, error: BaseException) -> bool:
        """Whether an error says that another process is gone."""
        if self.group is None:
            return False
        words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
        return isinstance(error, dist.DistError) or any(w in str(error) for w in words)

    def alone(
        self, position: str, error: Exception, checkpoint: Path | None
    ) -> ProcessLostError:
        """Return the error for having lost another process after a position."""
        where = "there is no checkpoint to go on from"
        if checkpoint is not None:
            where = (
                f"{checkpoint} is kept, and the same call with resume=True goes on from"
                " it, in any number of processes"
            )
        return ProcessLostError(
            f"process {self.rank} of {self.size} lost contact with another one after"
            f" {position}: that one ended, see what it said"
            f" ({str(error).splitlines()[0]}); {where}"
        )


class Shares:
    """A loader of batches, of which this process gets its share.

    The indices of a ``DataLoader`` over a map-style dataset are shared, so that each
    process loads its own samples only; of any other batches a slice is taken. A loader
    with a ``DistributedSampler`` gives shares already. A batch with fewer samples than
    processes goes to each of them whole.
    """

    def __init__(self, loader: Iterable[Any], team: Team) -> None:
        self.loader, self.team = loader, team
        self.given = isinstance(
            getattr(loader, "sampler", None), DistributedSampler
        ) or isinstance(
            getattr(getattr(loader, "batch_sampler", None), "sampler", None),
            DistributedSampler,
        )
        #: For each batch under way: whether it is whole, and a mark of its samples.
        self.notes: deque[tuple[bool, int]] = deque()

    def __iter__(self) -> Iterator[Any]:
        self.notes.clear()
        if self.team.size == 1 or self.given:
            yield from self.loader
        elif _by_index(self.loader):
            yield from self._by_index(self.loader)
        else:
            yield from map(self._slice, self.loader)

    def taken(self) -> tuple[bool, int]:
        """Return whether the batch that came last is whole, and its mark."""
        return self.notes.popleft() if self.notes else (False, 0)

    def _by_index(self, loader: Any) -> Iterable[Any]:
        return DataLoader(
            loader.dataset,
            batch_sampler=_Indices(self, loader.batch_sampler),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            generator=loader.generator,
            prefetch_factor=loader.prefetch_factor,
            timeout=loader.timeout,
        )

    def _slice(self, batch: Any) -> Any:
        if not (isinstance(batch, (tuple, list)) and isinstance(batch[-1], Tensor)):
            return batch  # for `unpack` to complain of
        labels = batch[-1].cpu().contiguous().numpy().tobytes()
        part = self.part(len(batch[-1]), zlib.crc32(labels))
        return tuple(each[part] for each in batch)

    def part(self, samples: int, mark: int) -> slice:
        """Return the share of a batch of so many samples, and note what it is of."""
        rank, size = self.team.rank, self.team.size
        whole = samples < size
        self.notes.append((whole, mark))
        if whole:
            return slice(0, samples)
        return slice(rank * samples // size, (rank + 1) * samples // size)


class _Indices:
    """The batch sampler of a share."""

    def __init__(self, shares: Shares, sampler: Iterable[list[int]]) -> None:
        self.shares, self.sampler = shares, sampler

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self.sampler:
            mark = zlib.crc32(np.asarray(indices).tobytes())
            yield indices[self.shares.part(len(indices), mark)]


def _by_index(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )
