"""Gates and max-pool routes applied to rows and tangents by one CUDA kernel each.

On the CPU, and where CUDA was not built, the same results come from torch operators
(rules/activation.py, rules/pooling.py); here `native.has("gate_rows", ...)` tells.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastjac import native

__all__ = [
    "PoolAxis",
    "gate_rows",
    "gated_sum",
    "pool_axes",
    "pool_tangents",
    "unpool_rows",
]


class PoolAxis(NamedTuple):
    """Which inputs an output of a pool covers along one axis.

    Output `o` covers `o * stride - padding + [0, extent)`, or, if the stride is 0
    (adaptive), `floor(o * input / output)` up to `ceil((o + 1) * input / output)`.
    """

    input: int
    output: int
    extent: int = 0
    stride: int = 0
    padding: int = 0


def pool_axes(
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[PoolAxis]:
    """The axes of a max pool with these settings, one value for each axis.

    Example:
        >>> pool_axes([6], [3], kernel=[2], stride=[2], padding=[0], dilation=[1])
        [PoolAxis(input=6, output=3, extent=2, stride=2, padding=0)]
    """
    settings = zip(
        input_shape, output_shape, kernel, stride, padding, dilation, strict=True
    )
    return [PoolAxis(i, o, (k - 1) * d + 1, s, p) for i, o, k, s, p, d in settings]


def gate_rows(
    rows: Tensor, gate: Tensor, *, positive: bool, out: Tensor | None = None
) -> Tensor:
    r"""Rows times the gate that all of them share.

    $$out_{rl} = rows_{rl} \cdot gate_l$$

    Args:
        rows: (R, *gate.shape), on a GPU; or (R, 1, *gate.shape[1:]), and all samples
            have the same rows.
        gate: the factors, of any shape.
        positive: take 1 where `gate` is > 0 and 0 elsewhere (`gate` is the result of a
            ReLU), instead of `gate` itself.
        out: where to write the result; may be `rows`. None for a new tensor.

    Returns:
        `out`, (R, *gate.shape).

    Raises:
        RuntimeError: there is no native kernel for that device.
        ValueError: the tensors do not fit together.
    """
    shape = (rows.shape[0], *gate.shape)
    out = rows.new_empty(shape) if out is None else out
    module = native.kernels(rows, gate, out)
    if rows.shape[1:] != (1, *gate.shape[1:]):
        _same_shape("`gate`", gate.shape, "a row", rows.shape[1:])
    _same_shape("`out`", out.shape, "`rows`", shape)
    module.gate_rows(
        rows=rows.data_ptr(),
        gate=gate.data_ptr(),
        out=out.data_ptr(),
        row_count=rows.shape[0],
        length=gate.numel(),
        period=rows.numel() // max(1, rows.shape[0]),
        positive=positive,
        **native.launch_arguments(rows),
    )
    return out


def gated_sum(tangents: Tensor, gate: Tensor, *, positive: bool) -> Tensor:
    r"""Tangents times the gate that all of them share, added up over samples.

    $$out_{rh} = \sum_n gate_{nh} \cdot tangents_{rnh}$$

    Args:
        tangents: (R, N, H), on a GPU.
        gate: (N, H).
        positive: as in `gate_rows`.

    Returns:
        (R, H).

    Raises:
        RuntimeError: there is no native kernel for that device.
        ValueError: the tensors do not fit together.
    """
    module = native.kernels(tangents, gate)
    _same_shape("`gate`", gate.shape, "a row", tangents.shape[1:])
    out = tangents.new_empty(tangents.shape[0], tangents.shape[2])
    module.gated_sum(
        tangents=tangents.data_ptr(),
        gate=gate.data_ptr(),
        out=out.data_ptr(),
        row_count=tangents.shape[0],
        samples=tangents.shape[1],
        length=tangents.shape[2],
        positive=positive,
        **native.launch_arguments(tangents),
    )
    return out


def unpool_rows(
    rows: Tensor,
    indices: Tensor,
    axes: Sequence[PoolAxis],
    gate: Tensor | None = None,
    *,
    positive: bool = False,
) -> Tensor:
    r"""Rows at the output of a max pool carried to its input: the pull of the pool.

    $$out_{raq} = gate_{aq} \sum_{p:\, indices_{ap} = q} rows_{rap}$$

    Windows may overlap; terms are added in ascending p, so that every run gives the
    same bits.

    Args:
        rows: (R, *indices.shape), on a GPU.
        indices: (..., *outputs) int64, as torch's max pools return them: the position
            of each winner in its plane, flattened over the pooled axes.
        axes: the pooled axes, one to three, as many as `indices` has outputs.
        gate: (..., *inputs), shared by the rows, or None for ones.
        positive: as in `gate_rows`.

    Returns:
        (R, ..., *inputs).

    Raises:
        RuntimeError: there is no native kernel for that device.
        ValueError: the tensors or the axes do not fit together.
    """
    module = native.kernels(rows, indices)
    _check_indices(indices)
    _same_shape("`indices`", indices.shape, "a row", rows.shape[1:])
    if not 1 <= len(axes) <= 3:
        raise ValueError(f"`axes` must be one to three PoolAxis, got {len(axes)}")
    planes = indices.shape[: -len(axes)]
    outputs = tuple(axis.output for axis in axes)
    _same_shape("`axes`: outputs", outputs, "`indices`", indices.shape[-len(axes) :])
    out = rows.new_empty((rows.shape[0], *planes, *(axis.input for axis in axes)))
    whole = [PoolAxis(1, 1)] * (3 - len(axes)) + list(axes)
    module.unpool_rows(
        rows=rows.data_ptr(),
        indices=indices.data_ptr(),
        gate=_gate_address(gate, rows, out.shape[1:]),
        positive=positive,
        out=out.data_ptr(),
        axes=whole,
        row_count=rows.shape[0],
        planes=math.prod(planes),
        **native.launch_arguments(rows),
    )
    return out


def pool_tangents(
    tangents: Tensor,
    indices: Tensor,
    spatial: int,
    gate: Tensor | None = None,
    *,
    positive: bool = False,
) -> Tensor:
    r"""Tangents at the input of a max pool carried to its output: the push of the pool.

    $$out_{rap} = gate_{aq} tangents_{raq},\quad q = indices_{ap}$$

    Args:
        tangents: (R, ..., *inputs), on a GPU.
        indices: (..., *outputs) int64, see `unpool_rows`.
        spatial: how many axes the pool has.
        gate: (..., *inputs), shared by the rows, or None for ones.
        positive: as in `gate_rows`.

    Returns:
        (R, *indices.shape).

    Raises:
        RuntimeError: there is no native kernel for that device.
        ValueError: the tensors do not fit together.
    """
    module = native.kernels(tangents, indices)
    _check_indices(indices)
    if not 1 <= spatial <= 3:
        raise ValueError(f"`spatial` (={spatial}) must be 1, 2 or 3")
    planes = indices.shape[:-spatial]
    _same_shape(
        "`tangents`: planes", tangents.shape[1:-spatial], "`indices`: planes", planes
    )
    out = tangents.new_empty((tangents.shape[0], *indices.shape))
    module.pool_tangents(
        tangents=tangents.data_ptr(),
        indices=indices.data_ptr(),
        gate=_gate_address(gate, tangents, tangents.shape[1:]),
        positive=positive,
        out=out.data_ptr(),
        row_count=tangents.shape[0],
        planes=math.prod(planes),
        pooled=math.prod(indices.shape[-spatial:]),
        input=math.prod(tangents.shape[-spatial:]),
        **native.launch_arguments(tangents),
    )
    return out


def _gate_address(gate: Tensor | None, rows: Tensor, shape: Sequence[int]) -> int:
    if gate is None:
        return 0
    native.kernels(rows, gate)
    _same_shape("`gate`", gate.shape, "a row at the pool's input", shape)
    if gate.dtype != rows.dtype:
        raise ValueError(f"`gate` must be {rows.dtype} as the rows, got {gate.dtype}")
    return gate.data_ptr()


def _check_indices(indices: Tensor) -> None:
    if indices.dtype != torch.int64:
        raise ValueError(f"`indices` must be int64, got {indices.dtype}")


def _same_shape(
    name: str, shape: Sequence[int], other: str, expected: Sequence[int]
) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(
            f"{name} {tuple(shape)} must have the shape of {other} {tuple(expected)}"
        )
