"""Wrappers of the gated convolution's kernels; see csrc/cpu/gated_conv.h.

Those for a GPU are in native_conv_gpu.py; the functions here choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastjac import native, native_conv_gpu
from fastjac.precision import HALF

if TYPE_CHECKING:
    from fastjac.rules.layout import InputLayout
    from fastjac.rules.live import Listing, Live

#: The most taps that a window may have (``kMostTaps`` in csrc/cpu/gated_conv.h).
MOST_TAPS = 256


def conv_geometry(
    like: Tensor,
    *,
    in_channels: int,
    out_channels: int,
    in_size: tuple[int, ...],
    out_size: tuple[int, ...],
    pooled_pixels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Any:
    """Return what does not change from call to call, checked once.

    ``like`` is a tensor on the device that the kernels shall run on.

    Raises:
        ValueError: a size does not fit.
    """
    backend = native.backend(like)
    assert backend is not None
    return backend.bindings.ConvGeometry(
        in_channels=in_channels,
        out_channels=out_channels,
        in_height=in_size[0],
        in_width=in_size[1],
        out_height=out_size[0],
        out_width=out_size[1],
        pooled_pixels=pooled_pixels,
        kernel_y=kernel[0],
        kernel_x=kernel[1],
        stride_y=stride[0],
        stride_x=stride[1],
        padding_y=padding[0],
        padding_x=padding[1],
        dilation_y=dilation[0],
        dilation_x=dilation[1],
    )


def live_list(
    live: Live,
    listing: Listing,
    *,
    gate: Tensor | None,
    step: bool,
    pooled_gate: Tensor | None,
    pooled_step: bool,
) -> None:
    """List a convolution's live outputs from its gates and routes.

    Args:
        live: what stands behind the convolution.
        listing: the arrays to fill.
        gate: (N, C, ...) at the layer's outputs, or None for all open.
        step: whether ``gate`` opens where it is positive; else it is a factor.
        pooled_gate: the same behind the pool.
        pooled_step: the same for ``pooled_gate``.
    """
    arrays = native.bindings_of(live.like).LiveArrays(
        **_addresses(live, listing),
        gate=address(gate),
        step=step,
        pooled_gate=address(pooled_gate),
        pooled_step=pooled_step,
    )
    if native.on_gpu(live.like):
        native_conv_gpu.live_list(live, arrays)
        return
    module = native.module()
    pixels = 0 if live.route is not None else live.geometry.pixels
    opened = torch.empty(
        live.samples * live.out_shape[1] * min(pixels, module.LIST_PIXELS),
        dtype=torch.uint8,
    )
    module.live_list(
        arrays=arrays,
        open=opened.data_ptr(),
        **native.launch_arguments(listing.factors),
    )


def live_arrays(live: Live) -> Any:
    """Return the addresses of a list's arrays as the bindings want them."""
    return native.bindings_of(live.like).LiveArrays(**_addresses(live, live.listing))


def _addresses(live: Live, listing: Listing) -> dict[str, Any]:
    return {
        "geometry": live.geometry,
        "samples": live.samples,
        "route": address(live.route),
        "starts": listing.starts.data_ptr(),
        "channels": listing.channels.data_ptr(),
        "sources": listing.sources.data_ptr(),
        "factors": listing.factors.data_ptr(),
        "positions": address(listing.positions),
        "offsets": listing.offsets.data_ptr(),
        "window_y": live.window[0],
        "window_x": live.window[1],
        "scale": live.scale,
    }


def live_rows(
    live: Live,
    rows: Tensor,
    compact: Tensor,
    *,
    gather: bool,
    live_only: bool = False,
    bias: Tensor | None = None,
    ones: Tensor | None = None,
    bias_gradient: Tensor | None = None,
) -> None:
    """Move between rows (R, n, C, Q) of any strides and live entries, times the gates.

    Gathering copies; scattering adds to zeros, which it writes first, as several
    entries of an average have one source. On a CPU, with ``ones`` (n, R), scattering
    adds ``bias`` (C,) times them to the entries on their way, and gathering writes to
    ``bias_gradient`` (C,) the sum of the entries times them. ``live_only``: scattering
    leaves the rows of dead outputs as they are; those of each output lie together, up
    to the stride of channels.

    Raises:
        ValueError: the dtypes, devices or shapes differ; ``ones`` are missing.
    """
    same_kind(live.like, rows, compact)
    bindings = native.bindings_of(rows)
    stride = rows.stride()
    place = bindings.RowsPlace(
        rows=rows.data_ptr(),
        compact=compact.data_ptr(),
        row_count=rows.shape[0],
        row_stride=compact.shape[1],
        stride_row=stride[0],
        stride_sample=stride[1],
        stride_channel=stride[2],
        stride_pixel=stride[3],
    )
    more: dict[str, Any] = {"live_only": True} if live_only else {}
    if bias is not None:
        bias = bias.contiguous()
    channels = (live.out_shape[1],)
    lifted = {
        "ones": (ones, (live.samples, rows.shape[0])),
        "bias": (bias, channels),
        "bias_gradient": (bias_gradient, channels),
    }
    for name, (tensor, shape) in lifted.items():
        if tensor is None:
            continue
        same_kind(live.like, tensor)
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"`{name}` must be contiguous, of shape {shape}; got "
                f"{tuple(tensor.shape)} with strides {tensor.stride()}"
            )
        more[name] = tensor.data_ptr()
    bindings.live_rows(
        arrays=live.arrays,
        rows=place,
        gather=gather,
        **more,
        **native.launch_arguments(rows),
    )


def live_pull(
    live: Live, below: Live, *, weight: Tensor, compact: Tensor, out: Tensor
) -> None:
    """Pull through a linear layer to those inputs that the layer below has alive.

    Args:
        live: the live outputs of the layer.
        below: the live outputs of the layer below, whose outputs, flattened, are the
            layer's inputs.
        weight: (I, C), transposed.
        compact: (n C, stride), rows of the live entries; stride holds whole vectors.
        out: (n, I, stride), written at live inputs only.

    Raises:
        ValueError: the dtypes or devices differ.
    """
    same_kind(live.like, weight, compact, out)
    inputs, channels = weight.shape
    native.module().live_pull(
        weight=weight.data_ptr(),
        starts=live.listing.starts.data_ptr(),
        channels=live.listing.channels.data_ptr(),
        compact=compact.data_ptr(),
        below_starts=below.listing.starts.data_ptr(),
        below_channels=below.listing.channels.data_ptr(),
        below_sources=below.listing.sources.data_ptr(),
        out=out.data_ptr(),
        samples=live.samples,
        channel_count=channels,
        input_count=inputs,
        below_pixels=below.geometry.pixels,
        below_pooled=below.geometry.pooled_pixels,
        row_stride=compact.shape[1],
        **native.launch_arguments(out),
    )


def gated_conv(
    direction: str,
    live: Live,
    *,
    weight: Tensor,
    compact: Tensor,
    input: Tensor,
    layout: InputLayout,
    inputs: Live | None = None,
    weight_gradient: Tensor | None = None,
) -> None:
    """Run one pass of a gated convolution on a CPU.

    Args:
        direction: "pull" (compact to input), "push" (input to compact) or "weight"
            (both to ``weight_gradient``, which is added to).
        live: the live outputs.
        weight: as `Packed.weight` gives it for this layout.
        compact: (n C Q, stride), rows of the live entries.
        input: rows (R, n, C', ...).
        layout: the layout that ``input`` has.
        inputs: the live ones of the inputs, where the layout holds those alone.
        weight_gradient: shaped like ``weight``.

    Raises:
        ValueError: the dtypes or devices differ.
    """
    same_kind(live.like, weight, compact, input)
    module = native.module()
    module.gated_conv(
        arrays=live.arrays,
        inputs=None if inputs is None else inputs.arrays,
        direction=getattr(module.ConvPass, direction),
        lanes_are_rows=layout.by_window,
        row_count=layout.count,
        weight=weight.data_ptr(),
        weight_stride=weight.shape[-1],
        compact=compact.data_ptr(),
        compact_stride=compact.shape[1],
        input=layout.origin(input),
        input_stride=layout.stride,
        weight_gradient=address(weight_gradient),
        **native.launch_arguments(input),
    )


def address(tensor: Tensor | None) -> int:
    """Return where a tensor's elements begin; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def same_kind(expected: Tensor, *tensors: Tensor) -> None:
    """Raise unless all are as expected; on a GPU rows may be held in fewer bits."""
    dtype, device = expected.dtype, expected.device
    if all(t.dtype == dtype and t.device == device for t in tensors):
        return
    known = {dtype}
    if dtype == torch.float32 and native.on_gpu(expected):
        known = {*HALF, *known}
    alike = len({t.dtype for t in tensors}) == 1 and tensors[0].dtype in known
    if not alike or any(t.device != device for t in tensors):
        got = ", ".join(f"{t.dtype} on {t.device}" for t in tensors)
        raise ValueError(f"rows must be {dtype} on {device}, as the weights; got {got}")
