"""How much memory a sweep may take, and what to do when there is not enough.

A chunk of n samples and r rows takes about ``HELD * n * r`` times the bytes of one row
of one sample at all layers together, and the weights, their gradients and what prepares
them take ``WEIGHTS`` times the bytes of the weights, whatever the chunk. Both numbers
are measured upper bounds (bench/NOTES.md).
"""

from __future__ import annotations

import resource
from pathlib import Path
from types import TracebackType

import torch

from fastjac.checks import warn_once
from fastjac.linearization import Linearization

#: Bytes taken at the peak for each byte of rows in a chunk.
HELD = 4
#: Rows are padded to whole vectors, so fewer than these take no less.
FEWEST_ROWS = 8
#: Bytes taken at the peak for each byte of weights.
WEIGHTS = 4
#: The share of the free memory that is taken if no budget is set.
SHARE = 0.5
#: Less than this is taken without looking how much is free.
MODEST = 256 << 20
#: By how much chunks shrink when memory has run out.
SHRINK = 8

_budget: int | None = None
#: For each device on which memory ran out, the most that a sweep takes from then on.
_learned: dict[str, int] = {}


class memory_budget:
    """Set how many bytes a penalty may take above the forward pass.

    The chunk that a sweep holds in memory is then chosen to fit; it is not made larger
    for a larger budget than is good for speed. It takes effect at once, for the whole
    process, and as a context manager until the end of the ``with`` block.

    Args:
        limit: bytes, at least 1; None, the initial state, for half of what is free
            when a sweep begins, on its device.

    Raises:
        TypeError, ValueError: ``limit`` is no positive integer.

    Note:
        The smallest chunk is one row of one sample. A budget that does not even hold
        that and the weights' gradients is exceeded.

    Example:
        >>> import torch, fastjac
        >>> model = torch.nn.Linear(3, 2)
        >>> with fastjac.memory_budget(2 << 30):  # 2 GiB
        ...     penalty = fastjac.jacobian_penalty(model, torch.randn(4, 3))
    """

    def __init__(self, limit: int | None) -> None:
        global _budget
        if limit is not None:
            if type(limit) is not int:
                raise TypeError(
                    "`limit` must be a whole number of bytes, such as 2 << 30 for "
                    f"2 GiB, or None; got {limit!r}"
                )
            if limit < 1:
                raise ValueError(f"`limit` must be at least 1 byte; got {limit}")
        self._before, _budget = _budget, limit

    def __enter__(self) -> None:
        """Nothing to do: the budget is set already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the budget back that was set before."""
        global _budget
        _budget = self._before


def affordable(linearization: Linearization, rows: int, pairs: int) -> int:
    """Return how many (sample, row) pairs fit the budget, ``pairs`` at most.

    Args:
        linearization: what the sweep runs over.
        rows: of each sample.
        pairs: as many as would be good for speed.
    """
    waste = max(1.0, FEWEST_ROWS / rows)
    pair = round(HELD * waste * _pair_bytes(linearization))
    wanted = min(pairs, rows * linearization.samples) * pair
    available = _limit(linearization.device, wanted) - _fixed(linearization)
    return max(1, min(pairs, available // pair))


def shrunk(linearization: Linearization, pairs: int) -> int:
    """Return how many pairs to try where ``pairs`` have run out of memory; warn."""
    device = linearization.device
    fewer = max(1, pairs // SHRINK)
    _learned[device.type] = _fixed(linearization) + round(
        HELD * fewer * _pair_bytes(linearization)
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    warn_once(
        f"out of memory on {device.type}",
        lambda: (
            f"fastjac ran out of memory on {device} with {pairs} (sample, row) pairs"
            f" at once; it goes on with {fewer}, and stays at that. To choose yourself,"
            " set fastjac.memory_budget(bytes), or pass chunk=pairs"
        ),
    )
    return fewer


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed."""
    if isinstance(error, MemoryError):
        return True
    if "OutOfMemory" in type(error).__name__:
        return True
    message = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in message
        for sign in ("allocate memory", "out of memory", "not enough memory")
    )


def _pair_bytes(linearization: Linearization) -> int:
    return linearization.dtype.itemsize * linearization.row_elements


def _fixed(linearization: Linearization) -> int:
    return WEIGHTS * sum(w.numel() * w.itemsize for w in linearization.weights)


def _limit(device: torch.device, wanted: int) -> int:
    """Return the most bytes that a sweep may take."""
    learned = _learned.get(device.type)
    if _budget is not None:
        return _budget if learned is None else min(_budget, learned)
    if learned is not None:
        return learned
    if wanted <= MODEST:
        return 2 * MODEST + wanted
    return int(SHARE * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can still be had on a device.

    On a CPU it is the least of what the system has available, what the control group
    leaves and what the limit of the address space leaves.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )
        return int(free + cached)
    known = [_available(), _left_in_group(), _left_of_address_space()]
    return min((bytes for bytes in known if bytes is not None), default=4 << 30)


def _available() -> int | None:
    return _kibibytes("/proc/meminfo", "MemAvailable:")


def _left_in_group(folder: str = "/sys/fs/cgroup") -> int | None:
    """Return what a container's limit leaves (control groups, version 2)."""
    try:
        most = Path(folder, "memory.max").read_text().strip()
        used = int(Path(folder, "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - used)


def _left_of_address_space() -> int | None:
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _kibibytes("/proc/self/status", "VmSize:")
    if most == resource.RLIM_INFINITY or used is None:
        return None
    return max(0, most - used)


def _kibibytes(path: str, label: str) -> int | None:
    try:
        with open(path) as lines:
            for line in lines:
                if line.startswith(label):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return None
