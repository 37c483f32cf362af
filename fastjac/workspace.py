"""Memory that the native kernels use again and again.

Fresh memory costs a page fault every 4 kB, a tenth of a step on the paper's MNIST
network. Rows of a chunk are dead when the next chunk begins, so they are taken from one
arena a thread, which is wound back at the start of each chunk. What a linearisation
holds lives until it is dropped; then its memory waits in `lists` for the next step's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

#: The most bytes that a thread's arena, and the pool, keep when nobody uses them.
KEPT_BYTES = 256 << 20
#: From how many chunks on a sweep's arena is not kept for the next one: to fault it in
#: again takes little of their time, and the backward pass that follows has the room.
MANY_CHUNKS = 6
#: Cache lines; every tensor begins on one.
ALIGNMENT = 64


class Arena:
    """Blocks handed out in turn and taken back all at once.

    Chunks ask for the same sizes in the same order, so the first one's blocks serve
    all; a block that is too small for a later one is made anew, alone.
    """

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []
        #: How many of them are handed out.
        self.taken = 0
        #: Whether all of them lie in one piece of memory.
        self.joined = True
        self.open = False
        #: How often this sweep has wound it back: once before each chunk.
        self.rewinds = 0

    def rewind(self) -> None:
        """Take back everything."""
        self.rewinds += 1
        self.taken = 0

    def take(self, size: int) -> Tensor:
        """Return ``size`` bytes or more that nobody else has until `rewind`."""
        place = self.taken
        self.taken += 1
        if place == len(self.blocks):
            self.blocks.append(self._new(size))
        elif self.blocks[place].numel() < size:
            # Given back first, as both may not fit; a part of a joined piece stays.
            self.blocks[place] = torch.empty(0)
            self.blocks[place] = self._new(size)
        return self.blocks[place]

    def _new(self, size: int) -> Tensor:
        self.joined = False
        return torch.empty(-(-size // ALIGNMENT) * ALIGNMENT, dtype=torch.uint8)

    def join(self) -> None:
        """Put all blocks into one piece of memory, apart from what others allocate."""
        if not self.joined:
            sizes = [block.numel() for block in self.blocks]
            self.blocks = []  # given back first, again
            self.blocks = list(torch.empty(sum(sizes), dtype=torch.uint8).split(sizes))
            self.joined = True

    def drop(self) -> None:
        """Give all memory back."""
        self.blocks, self.joined = [], True


class Pool:
    """Memory lent for the lifetime of an object; any thread may borrow."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        self.lock = threading.Lock()

    def borrow(self, size: int, owner: object) -> Tensor:
        """Return ``size`` bytes or some more, that are ``owner``'s until it is gone."""
        with self.lock:
            fitting = [
                block for block in self.free if size <= block.numel() <= 2 * size
            ]
            block = min(fitting, key=Tensor.numel, default=None)
            if block is None:
                # Rounded up, so that it fits chunks of a few samples more as well.
                step = max(ALIGNMENT, 1 << (size.bit_length() - 4))
                block = torch.empty(-(-size // step) * step, dtype=torch.uint8)
            else:
                self.free = [other for other in self.free if other is not block]
        weakref.finalize(owner, self._take_back, block).atexit = False
        return block

    def _take_back(self, block: Tensor) -> None:
        """Keep a block, the latest ones first, as far as `KEPT_BYTES` goes."""
        with self.lock:
            kept = [block, *self.free]
            totals = accumulate(other.numel() for other in kept)
            self.free = [
                other
                for other, total in zip(kept, totals, strict=True)
                if total <= KEPT_BYTES
            ]


#: The memory of lists of live outputs.
lists = Pool()


class _Local(threading.local):
    def __init__(self) -> None:
        self.arena = Arena()


_local = _Local()


@contextmanager
def sweeping() -> Iterator[None]:
    """Let `empty` and `zeros` use the thread's arena; `rewind` winds it back."""
    arena = _local.arena
    if arena.open:  # a sweep within a sweep of the same thread: leave its memory alone
        arena = Arena()
        _local.arena, outer = arena, _local.arena
    else:
        outer = arena
    arena.open, arena.taken, arena.rewinds = True, 0, 0
    try:
        yield
        kept = sum(block.numel() for block in arena.blocks) <= KEPT_BYTES
        if kept and arena.rewinds < MANY_CHUNKS:
            arena.join()
        else:
            arena.drop()
    except BaseException:
        arena.drop()  # what failed may have failed for want of memory
        raise
    finally:
        arena.open = False
        _local.arena = outer


def rewind() -> None:
    """Take back what `empty` and `zeros` have given out in this thread's sweep."""
    _local.arena.rewind()


def empty(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return uninitialised memory for this chunk, of the dtype of ``like``.

    Outside a sweep, and on other devices than the CPU, torch allocates it.
    """
    arena = _local.arena
    if not arena.open or like.device.type != "cpu":
        return like.new_empty(tuple(shape))
    count = prod(shape)
    block = arena.take(count * like.itemsize)
    return block[: count * like.itemsize].view(like.dtype).view(tuple(shape))


def empty_as(rows: Tensor) -> Tensor:
    """Return uninitialised memory for this chunk of the shape and strides of ``rows``.

    Strides that leave gaps between elements, or none, are those that torch would give.
    """
    order = sorted(range(rows.dim()), key=lambda d: (rows.stride(d), -d), reverse=True)
    inverse = [order.index(d) for d in range(rows.dim())]
    return empty([rows.shape[d] for d in order], rows).permute(inverse)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return zeros for this chunk, as `empty` does."""
    return empty(shape, like).zero_()
