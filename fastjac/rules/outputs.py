"""How the tangents that a gated layer pushes lie in memory, for what reads them."""

from __future__ import annotations

from enum import Enum
from math import prod

from torch import Tensor

from fastjac import workspace
from fastjac.rules.layout import Packed, padded


class Reader(Enum):
    """What reads the tangents of a gated layer."""

    GATED = "a gated layer: channels last, behind the rows of a pixel"
    LIVE = "a gated convolution that leaves out what is dead: rows last"
    FLAT = "a gated linear layer behind a flatten: a sample's rows one by one"
    OTHER = "anything else: the rows' own order"


def room_for(
    reader: Reader,
    shape: tuple[int, ...],
    packed: Packed,
    like: Tensor,
    room: Tensor | None,
) -> Tensor:
    """Return tangents that kernels shall fill where a layer's outputs are alive.

    The kernel writes zeros elsewhere, but not for `Reader.LIVE`, nor on a GPU in the
    padding behind channels.

    Args:
        reader: what will read them.
        shape: (R, n, C, ...), behind the layer's pool.
        packed: the layer, for the vectors that strides are made of.
        like: a tensor of their dtype.
        room: memory that they take if it is laid out as they shall be, or None.
    """
    if room is not None and (room.shape != shape or room.dtype != like.dtype):
        room = None
    if reader is Reader.OTHER:
        if room is not None and room.is_contiguous():
            return room
        return workspace.empty(shape, like)
    strides, padding = _strides(reader, shape, packed)
    if room is not None and room.stride() == strides:
        return room
    make = workspace.zeros if padding and packed.on_gpu else workspace.empty
    block = make((shape[1] * strides[1],), like)
    return block.as_strided(shape, strides, block.storage_offset())


def _strides(
    reader: Reader, shape: tuple[int, ...], packed: Packed
) -> tuple[tuple[int, ...], bool]:
    """Return the strides of (R, n, C, ...), and whether there is padding."""
    count, _, channels, *size = shape
    pixels = prod(size)
    if reader is Reader.LIVE:
        row, channel = 1, padded(count, packed.lanes)
        pixel = channels * channel
        sample, padding = pixels * pixel, channel > count
    elif reader is Reader.FLAT:
        row, channel, pixel = packed.row_stride(channels * pixels), pixels, 1
        sample, padding = count * row, row > channels * pixels
    else:
        row, channel = packed.row_stride(channels), 1
        pixel = count * row
        sample, padding = pixels * pixel, row > channels
    spatial = (pixel * prod(size[d + 1 :]) for d in range(len(size)))
    return (row, sample, channel, *spatial), padding
