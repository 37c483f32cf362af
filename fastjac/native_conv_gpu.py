"""Wrappers of the gated convolution's kernels for a GPU; see csrc/cuda/gated_conv.h.

Sizes of lists stay on the device: every array has room for all outputs. Workspace comes
from torch's caching allocator, which knows the stream, so nothing has to be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastjac import native

if TYPE_CHECKING:
    from fastjac.rules.live import Live


def channel_stride(channels: int, like: Tensor) -> int:
    """Return the stride of rows of so many channels at a layer's input."""
    return int(native.bindings_of(like).channel_stride(native.dtype_of(like), channels))


def compact_stride(row_count: int, like: Tensor) -> int:
    """Return the stride of compact entries of so many rows."""
    return int(
        native.bindings_of(like).compact_stride(native.dtype_of(like), row_count)
    )


def live_list(live: Live, arrays: Any) -> None:
    """Fill the list of live outputs."""
    bindings = native.bindings_of(live.like)
    segments = bindings.live_segments(live.geometry, live.samples)
    counters = live.samples * live.geometry.pixels * segments
    cursors = live.like.new_empty(counters, dtype=torch.int32)
    bindings.live_list(
        arrays=arrays,
        cursors=cursors.data_ptr(),
        **native.launch_arguments(live.like),
    )


def gated_conv(
    direction: str,
    live: Live,
    *,
    weight: Tensor,
    compact: Tensor,
    input: Tensor,
    row_count: int,
    parts: tuple[Parts, bool] | None = None,
) -> None:
    """Run one pass of a gated convolution; see `native_conv.gated_conv`.

    ``parts`` are what "weight" adds to, and whether they hold anything yet.
    """
    arguments: dict[str, Any] = {
        "arrays": live.arrays,
        "row_count": row_count,
        "weight": weight.data_ptr(),
        "compact": compact.data_ptr(),
        "input": input.data_ptr(),
        **native.launch_arguments(input),
    }
    if parts is not None:
        partials = parts[0].partials
        arguments["partials"] = partials.data_ptr()
        arguments["splits"], arguments["add"] = partials.shape[0], parts[1]
    getattr(native.bindings_of(input), f"gated_conv_{direction}")(**arguments)


@dataclass(frozen=True)
class Parts:
    """A weight gradient in parts, each of some of the samples."""

    #: (parts, taps, C, stride), as the kernels lay out weights.
    partials: Tensor
    #: Of the weight: (C, C', ...).
    shape: torch.Size

    @staticmethod
    def of(live: Live, weight: Tensor, shape: torch.Size) -> Parts:
        """Return room for the gradient of a packed weight; nothing is in it yet."""
        bindings, dtype = native.bindings_of(weight), native.dtype_of(weight)
        splits = bindings.weight_splits(dtype, live.geometry, live.samples)
        return Parts(weight.new_empty(splits, *weight.shape), shape)

    def __len__(self) -> int:
        """How many elements there are."""
        return self.partials.numel()


def summed(waiting: Sequence[Parts]) -> list[Tensor]:
    """Add up the parts of each gradient, laid out as the weights are."""
    gradients = [parts.partials.new_empty(parts.shape) for parts in waiting]
    by_kind: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, gradient in enumerate(gradients):
        by_kind.setdefault((gradient.dtype, gradient.device), []).append(i)
    for members in by_kind.values():
        first = gradients[members[0]]
        native.bindings_of(first).sum_partials(
            layers=[
                (
                    waiting[i].partials.data_ptr(),
                    gradients[i].data_ptr(),
                    *waiting[i].partials.shape[:3],
                    waiting[i].shape[1],
                )
                for i in members
            ],
            **native.launch_arguments(first),
        )
    return gradients
