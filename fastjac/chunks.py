"""How a sweep is cut into chunks of samples and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from fastjac.budget import affordable
from fastjac.linearization import Linearization
from fastjac.rules.gated import GatedLayer
from fastjac.rules.head import GatedHead

#: Bytes of the rows of one chunk, over all values of the network together, that are
#: best for speed. Gated kernels want what they read again soon to stay in the cache;
#: where all products are dense, what counts is to call them less often.
CHUNK_BYTES = {"cpu": 48 << 20, "cuda": 1 << 30}
DENSE_CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Chunk:
    """Samples ``start:stop`` and rows ``first:last``."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def pairs(self) -> int:
        """How many (sample, row) pairs it holds."""
        return (self.stop - self.start) * (self.last - self.first)


def chunks(linearization: Linearization, rows: int, chunk: int | None) -> list[Chunk]:
    """Split samples and rows so that a chunk holds at most ``chunk`` of (sample, row).

    Rows of one sample stay together as far as that allows, because they share gates.
    """
    samples = linearization.samples
    if chunk is None:
        best = _best_bytes(linearization)
        size = linearization.dtype.itemsize
        chunk = max(1, best // (size * linearization.row_elements))
        chunk = affordable(linearization, rows, chunk)
    per_chunk = max(1, chunk // rows) if linearization.samplewise else samples
    rows_per_chunk = min(rows, max(1, chunk // min(per_chunk, samples)))
    return [
        Chunk(start, stop, first, last)
        for start, stop in _ranges(samples, per_chunk)
        for first, last in _ranges(rows, rows_per_chunk)
    ]


def _best_bytes(linearization: Linearization) -> int:
    gated = any(isinstance(r, GatedLayer | GatedHead) for r in linearization.rules)
    table = CHUNK_BYTES if gated else DENSE_CHUNK_BYTES
    return table.get(linearization.device.type, table["cpu"])


def _ranges(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Split ``0:total`` into nearly equal ranges of ``most`` or less, longest first.

    So what a chunk takes from the arena, later chunks need no more of.
    """
    parts = -(-total // most)
    cuts = [-(-part * total // parts) for part in range(parts + 1)]
    yield from pairwise(cuts)
