"""Wrappers of the gated convolution's kernels for a GPU; see csrc/cuda/gated_conv.h.

Sizes of lists stay on the device: every array has room for all outputs. Workspace comes
from torch's caching allocator, which knows the stream, so nothing has to be waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastjac import native

if TYPE_CHECKING:
    from fastjac.rules.live import Live


def channel_stride(channels: int, like: Tensor) -> int:
    """Return the stride of rows of so many channels at a layer's input."""
    return int(_bindings(like).channel_stride(native.dtype_of(like), channels))


def compact_stride(row_count: int, like: Tensor) -> int:
    """Return the stride of compact entries of so many rows."""
    return int(_bindings(like).compact_stride(native.dtype_of(like), row_count))


def live_list(
    live: Live, *, gate: int, step: bool, pooled_gate: int, pooled_step: bool
) -> None:
    """Fill the list of live outputs; gates are addresses, 0 for all open."""
    bindings = _bindings(live.factors)
    segments = bindings.live_segments(live.geometry, live.samples)
    counters = live.samples * live.geometry.pixels * segments
    cursors = torch.zeros(counters, dtype=torch.int32, device=live.factors.device)
    bindings.live_list(
        geometry=live.geometry,
        samples=live.samples,
        route=0 if live.route is None else live.route.data_ptr(),
        gate=gate,
        step=step,
        pooled_gate=pooled_gate,
        pooled_step=pooled_step,
        starts=live.starts.data_ptr(),
        channels=live.channels.data_ptr(),
        sources=live.sources.data_ptr(),
        factors=live.factors.data_ptr(),
        positions=_positions(live),
        offsets=live.offsets.data_ptr(),
        cursors=cursors.data_ptr(),
        **native.launch_arguments(live.factors),
    )


def live_rows(live: Live, rows: Tensor, compact: Tensor, *, gather: bool) -> None:
    """Copy between rows (R, n, C, Q) of any strides and live entries, times the gates.

    Scattered rows are zero where nothing lives.
    """
    stride = rows.stride()
    _bindings(rows).live_rows(
        geometry=live.geometry,
        gather=gather,
        samples=live.samples,
        rows=rows.data_ptr(),
        compact=compact.data_ptr(),
        positions=_positions(live),
        factors=live.factors.data_ptr(),
        row_count=rows.shape[0],
        row_stride=compact.shape[1],
        stride_row=stride[0],
        stride_sample=stride[1],
        stride_channel=stride[2],
        stride_pixel=stride[3],
        **native.launch_arguments(rows),
    )


def gated_conv(
    direction: str,
    live: Live,
    *,
    weight: Tensor,
    compact: Tensor,
    input: Tensor,
    row_count: int,
    weight_gradient: Tensor | None,
) -> None:
    """Run one pass of a gated convolution; see `native_conv.gated_conv`."""
    bindings = _bindings(input)
    arguments: dict[str, Any] = {
        "geometry": live.geometry,
        "samples": live.samples,
        "row_count": row_count,
        "weight": weight.data_ptr(),
        "starts": live.starts.data_ptr(),
        "channels": live.channels.data_ptr(),
        "offsets": live.offsets.data_ptr(),
        "compact": compact.data_ptr(),
        "input": input.data_ptr(),
        **native.launch_arguments(input),
    }
    if direction == "weight":
        assert weight_gradient is not None
        dtype = native.dtype_of(input)
        splits = bindings.weight_splits(dtype, live.geometry, live.samples)
        partials = weight.new_empty(splits, *weight.shape)
        arguments["weight_gradient"] = weight_gradient.data_ptr()
        arguments["partials"] = partials.data_ptr()
    getattr(bindings, f"gated_conv_{direction}")(**arguments)


def _bindings(tensor: Tensor) -> Any:
    backend = native.backend(tensor)
    assert backend is not None
    return backend.bindings


def _positions(live: Live) -> int:
    assert live.positions is not None, "lists for a GPU hold positions"
    return live.positions.data_ptr()
