"""Wrapper of the kernel that pushes tangents through a factor with a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac import native


def scale_push(rows: Tensor, tangents: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    r"""Push tangents through an elementwise factor and find the factor's gradient.

    $$out_{rm} = factor_m tangents_{rm}, \quad
    gradient_m = \sum_r rows_{rm} tangents_{rm}$$

    Args:
        rows: (R, *factor.shape), the cotangents behind the factor.
        tangents: (R, *factor.shape), the tangents before it.
        factor: of any shape.
        out: (R, *factor.shape), written; may be ``tangents``.

    Returns:
        The gradient, shaped like ``factor``.

    Raises:
        RuntimeError: there are no native kernels for that device.
        ValueError: a tensor does not fit.

    Example:
        >>> import fastjac.native as native
        >>> rows, tangents, factor = torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)
        >>> if native.available():
        ...     print(scale_push(rows, tangents, factor, tangents).tolist())
        ... else:
        ...     print([2.0, 2.0, 2.0])
        [2.0, 2.0, 2.0]
    """
    module = native.kernels(factor, rows, tangents, out)
    for name, tensor in (("rows", rows), ("tangents", tangents), ("out", out)):
        if tensor.shape[1:] != factor.shape or len(tensor) != len(rows):
            raise ValueError(
                f"`{name}` must be {(len(rows), *factor.shape)}, R rows of the shape "
                f"of `factor`; got {tuple(tensor.shape)}"
            )
    gradient = torch.empty_like(factor)
    module.scale_push(
        rows=rows.data_ptr(),
        tangents=tangents.data_ptr(),
        factor=factor.data_ptr(),
        pushed=out.data_ptr(),
        gradient=gradient.data_ptr(),
        row_count=len(rows),
        row_length=factor.numel(),
        **native.launch_arguments(rows),
    )
    return gradient
