"""Wrapper of the gated head's kernel; see csrc/cpu/gated_head.h."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastjac import native, workspace
from fastjac.native_conv import address, same_kind

if TYPE_CHECKING:
    from fastjac.rules.layout import InputLayout
    from fastjac.rules.live import Live


def gated_head(
    gate: Live | Tensor,
    *,
    weight: Tensor,
    rows: Tensor,
    input: Tensor,
    layout: InputLayout,
    weight_gradient: Tensor,
) -> Tensor:
    """Compute the gradients of a gated linear layer whose rows all samples share.

    Args:
        gate: step gates (n, H), or the live outputs of the layer by unit: the pixels
            of that list are the units and its channels the samples.
        weight: (1, H, stride).
        rows: (R, H), the rows behind the gates.
        input: tangents (R, n, I) below the layer.
        layout: the layout that ``input`` has; vectors hold channels.
        weight_gradient: shaped like ``weight``, added to.

    Returns:
        (R, H): the gradient with respect to ``rows``.

    Raises:
        ValueError: the dtypes or devices differ.
    """
    step, live = (gate, None) if isinstance(gate, Tensor) else (None, gate)
    same_kind(weight, rows, input, gate if isinstance(gate, Tensor) else gate.like)
    module = native.module()
    row_count, samples, channels = input.shape
    units = rows.shape[1]
    if live is not None:
        rows = rows.t()
    rows = rows.contiguous()
    gradient = torch.zeros_like(rows)
    panel = module.head_panel(
        subsets=live is None, samples=samples, rows=row_count, units=units
    )
    panels = workspace.empty((module.HEAD_PARTS, panel), rows)
    partials = workspace.zeros((module.HEAD_PARTS, *rows.shape), rows)
    groups = -(-samples // module.HEAD_GROUP)
    members = torch.empty(units, groups, dtype=torch.uint8)
    module.gated_head(
        weight=weight.data_ptr(),
        rows=rows.data_ptr(),
        input=layout.origin(input),
        starts=0 if live is None else live.listing.starts.data_ptr(),
        samples=0 if live is None else live.listing.channels.data_ptr(),
        factors=0 if live is None else live.listing.factors.data_ptr(),
        gate=address(step),
        members=members.data_ptr(),
        weight_gradient=weight_gradient.data_ptr(),
        partials=partials.data_ptr(),
        panels=panels.data_ptr(),
        sample_count=samples,
        row_gradient=gradient.data_ptr(),
        units=units,
        row_count=row_count,
        in_channels=channels,
        stride=weight.shape[2],
        input_stride=layout.stride,
        **native.launch_arguments(rows),
    )
    return gradient if live is None else gradient.t()
