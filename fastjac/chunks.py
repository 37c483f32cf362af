"""How a sweep is cut into chunks of samples and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastjac.linearization import Linearization

#: Bytes that the rows of one chunk may take, over all values of the network together.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


@dataclass(frozen=True)
class Chunk:
    """Samples ``start:stop`` and rows ``first:last``."""

    start: int
    stop: int
    first: int
    last: int


def chunks(linearization: Linearization, rows: int, chunk: int | None) -> list[Chunk]:
    """Split samples and rows so that a chunk holds at most ``chunk`` of (sample, row).

    Rows of one sample stay together as far as that allows, because they share gates.
    """
    samples = linearization.samples
    if chunk is None:
        budget = CHUNK_BYTES.get(linearization.device.type, CHUNK_BYTES["cpu"])
        size = linearization.logits_dtype.itemsize
        chunk = max(1, budget // (size * linearization.row_elements))
    per_chunk = max(1, chunk // rows) if linearization.samplewise else samples
    rows_per_chunk = min(rows, max(1, chunk // min(per_chunk, samples)))
    return [
        Chunk(start, stop, first, last)
        for start, stop in _ranges(samples, per_chunk)
        for first, last in _ranges(rows, rows_per_chunk)
    ]


def _ranges(total: int, most: int) -> Iterator[tuple[int, int]]:
    """Split ``0:total`` into nearly equal ranges of at most ``most``."""
    parts = -(-total // most)
    for part in range(parts):
        yield part * total // parts, (part + 1) * total // parts
