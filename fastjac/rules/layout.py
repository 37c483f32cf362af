"""How the native kernels want weights and rows in memory; see csrc/cpu/gated_conv.h."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastjac import native, native_conv, native_conv_gpu, workspace
from fastjac.rules.convolution import Convolution
from fastjac.rules.linear import Linear

#: Bytes of a CPU's widest vector; strides of layouts there are multiples of it.
VECTOR_BYTES = 64
#: Addresses that are this far apart share a set of a CPU's first cache.
CACHE_PERIOD = 4096


class _Kept(threading.local):
    """Transposed weights by the identity of the weight, which is held along."""

    weights: dict[int, tuple[Tensor, int, Tensor]] | None = None


_kept = _Kept()


@contextmanager
def weights_kept() -> Iterator[None]:
    """Let layers transpose their weights once for many linearisations of one model.

    For loops that measure a model and do not change it. A weight that is changed in
    place all the same is transposed anew.
    """
    outer = _kept.weights
    _kept.weights = {} if outer is None else outer
    try:
        yield
    finally:
        _kept.weights = outer


def _transposed(weight: Tensor) -> Tensor | None:
    """Return a weight's transpose in memory of its own, if that is worth its while."""
    kept = _kept.weights
    if kept is None or not weight.is_leaf or weight.is_inference():
        return None
    found = kept.get(id(weight))
    if found is None or found[1] != weight._version:
        found = weight, weight._version, weight.detach().t().contiguous()
        kept[id(weight)] = found
    return found[2]


class Packed:
    """A layer's geometry and its weights as the kernels want them."""

    def __init__(
        self, layer: Convolution | Linear, planes: torch.Size, pooled_pixels: int
    ) -> None:
        weight = layer.weight
        self.shape, self.dtype = weight.shape, weight.dtype
        self.rank = weight.dim() - 2
        self.lanes = VECTOR_BYTES // weight.itemsize
        self.on_gpu = native.on_gpu(weight)
        self.in_shape = self._in_shape(layer)
        self.in_channels = self.in_shape[0]
        self.padding = (0, 0)
        if isinstance(layer, Convolution):
            self.padding = _pair(layer.geometry.padding, 0)
        self.geometry = self._geometry(layer, planes, pooled_pixels)
        taps = weight.flatten(2).permute(2, 0, 1) if self.rank else weight.unsqueeze(0)
        self._taps = taps
        self._parameter = layer.weights[0]
        self._weights: dict[bool, Tensor] = {}

    def weight(self, by_window: bool) -> Tensor:
        """Return the weights: (C, taps C'), or (taps, C, stride) of whole vectors."""
        if by_window not in self._weights:
            pack = self._by_window if by_window else self._by_tap
            self._weights[by_window] = pack()
        return self._weights[by_window]

    def _by_window(self) -> Tensor:
        return self._taps.transpose(0, 1).flatten(1).contiguous()

    def _by_tap(self) -> Tensor:
        stride = self.channel_stride(self.in_channels)
        packed = self._taps.contiguous()
        if stride == self.in_channels:
            return packed if self.aligned(packed) else packed.clone()
        packed = packed.new_zeros(*packed.shape[:2], stride)
        packed[..., : self.in_channels] = self._taps
        return packed

    def transposed(self) -> Tensor | None:
        """Return a linear layer's weight as (I, C), within `weights_kept` only."""
        return None if self.rank else _transposed(self._parameter)

    @property
    def channels_leave_lanes(self) -> bool:
        """Whether vectors of channels have idle lanes, so that rows may fill more."""
        return not self.on_gpu and self.in_channels % self.lanes != 0

    def aligned(self, tensor: Tensor) -> bool:
        """Whether a tensor begins where kernels for a GPU can load 16 bytes."""
        return not self.on_gpu or tensor.data_ptr() % 16 == 0

    def channel_stride(self, channels: int) -> int:
        """Return how many elements a row's or a weight's channels take."""
        if self.on_gpu:
            return native_conv_gpu.channel_stride(channels, self._taps)
        return padded(channels, self.lanes)

    def row_stride(self, channels: int) -> int:
        """Return the stride of rows whose vectors hold channels.

        On a CPU rows do not begin in one and the same set of its caches.
        """
        stride = self.channel_stride(channels)
        same_set = stride * self._taps.itemsize % CACHE_PERIOD == 0
        return stride + self.lanes if same_set and not self.on_gpu else stride

    def compact_stride(self, count: int) -> int:
        """Return the stride of live entries whose vectors do not hold rows."""
        if self.on_gpu:
            return native_conv_gpu.compact_stride(count, self._taps)
        return count

    def _in_shape(self, layer: Convolution | Linear) -> tuple[int, int, int]:
        """Return (C', H', W'); a signal of one dimension has H' = 1."""
        if isinstance(layer, Linear):
            return layer.weight.shape[1], 1, 1
        return layer.in_shape[1], *_pair(layer.in_shape[2:], 1)

    def _geometry(
        self, layer: Convolution | Linear, planes: torch.Size, pooled_pixels: int
    ) -> Any:
        linear = isinstance(layer, Linear)
        g = None if linear else layer.geometry  # type: ignore[union-attr]
        return native_conv.conv_geometry(
            layer.weight,
            in_channels=self.in_channels,
            out_channels=self.shape[0],
            in_size=self.in_shape[1:],
            out_size=_pair(planes[2:], 1),
            pooled_pixels=pooled_pixels,
            kernel=_pair(self.shape[2:], 1),
            stride=_pair(g.stride if g else (), 1),
            padding=_pair(g.padding if g else (), 0),
            dilation=_pair(g.dilation if g else (), 1),
        )

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return a gradient laid out as the weight is, from either of its layouts."""
        if packed.dim() == 2:
            taps = packed.unflatten(1, (-1, self.in_channels)).transpose(0, 1)
        else:
            taps = packed[..., : self.in_channels]
        return (taps.permute(1, 2, 0) if self.rank else taps[0]).reshape(self.shape)


class InputLayout:
    """The layout of R rows at a gated layer's input, tensors of shape (R, n, C', ...).

    Vectors hold channels, or on a CPU rows where there are few channels. Behind C' or R
    stands padding up to whole vectors; around the pixels of the second layout, a frame
    of the convolution's padding.

    In a third one, ``live_only``, vectors hold rows, there is no frame, and only live
    inputs have rows: the others hold anything.
    """

    def __init__(self, packed: Packed, count: int, live_only: bool = False) -> None:
        channels, lanes = packed.in_channels, packed.lanes
        self.packed, self.count = packed, count
        fill_of_rows = count / padded(count, lanes)
        fill_of_channels = channels / padded(channels, lanes)
        #: Whether a channel's weights lie window by window, and not tap by tap.
        self.by_window = (
            not packed.on_gpu and not live_only and fill_of_rows > fill_of_channels
        )
        self.live_only = live_only
        self.lanes_are_rows = self.by_window or live_only
        if self.lanes_are_rows:
            self.stride = self.compact_stride = padded(count, lanes)
        else:
            self.stride = packed.row_stride(channels)
            self.compact_stride = packed.compact_stride(count)
        _, height, width = packed.in_shape
        frame_y, frame_x = packed.padding if self.by_window else (0, 0)
        if self.lanes_are_rows:
            pixel, row, channel = channels * self.stride, 1, self.stride
        else:
            pixel, row, channel = count * self.stride, self.stride, 1
        line = (width + 2 * frame_x) * pixel
        self.sample = (height + 2 * frame_y) * line
        self.corner = frame_y * line + frame_x * pixel
        spatial = (line, pixel)[2 - packed.rank :]
        self.strides = (row, self.sample, channel, *spatial)

    def empty(self, like: Tensor) -> Tensor:
        """Return rows to be written for the samples of ``like``; a frame is zero."""
        samples = like.shape[1]
        make = workspace.zeros if self.corner else workspace.empty
        return self._view(make((samples * self.sample,), like), samples)

    def of(self, tangents: Tensor) -> Tensor:
        """Return tangents in this layout, copied only if they are in another."""
        if self._holds(tangents):
            return tangents
        samples = tangents.shape[1]
        laid_out = workspace.zeros((samples * self.sample,), tangents)
        return self._view(laid_out, samples).copy_(tangents)

    def origin(self, rows: Tensor) -> int:
        """Return the address of the first element, that of the frame's corner."""
        return rows.data_ptr() - self.corner * rows.itemsize

    def _view(self, buffer: Tensor, samples: int) -> Tensor:
        """Return rows in a buffer, which is zero if there is to be a frame."""
        spatial = self.packed.in_shape[3 - self.packed.rank :]
        shape = (self.count, samples, self.packed.in_channels, *spatial)
        start = buffer.storage_offset() + self.corner
        rows = buffer.as_strided(shape, self.strides, start)
        if self.corner:
            rows.framed = True  # type: ignore[attr-defined]
        return rows

    def _holds(self, tensor: Tensor) -> bool:
        """Whether a tensor has these strides, and the padding and frame around it.

        Padding has to be finite, because zero weights meet it: strides tell that there
        is some, which kernels write, but those of a single vector tell nothing. A frame
        has to be zero, so those tensors are known one by one.
        """
        lanes = tensor.shape[0 if self.lanes_are_rows else 2]
        if lanes != self.stride and lanes == tensor.numel():
            return False
        same = all(
            size == 1 or have == want
            for size, have, want in zip(
                tensor.shape, tensor.stride(), self.strides, strict=True
            )
        )
        if self.corner:
            return same and getattr(tensor, "framed", False)
        room = tensor.untyped_storage().nbytes() // tensor.itemsize
        elements = tensor.shape[1] * self.sample
        inside = tensor.storage_offset() + elements <= room
        return same and inside and self.packed.aligned(tensor)


def padded(count: int, lanes: int) -> int:
    """Return ``count`` rounded up to whole vectors."""
    return -(-count // lanes) * lanes


def _pair(values: Any, fill: int) -> tuple[int, int]:
    """Return two spatial values, filled up in front for fewer dimensions."""
    first, second = (fill, fill, *values)[-2:]
    return first, second
