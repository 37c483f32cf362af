"""Wrappers of the steps of DeepFool and JSMA; see csrc/cpu/deepfool_step.h."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac import native


def deepfool_step(
    rows: Tensor,
    logits: Tensor,
    start: Tensor,
    shift: Tensor,
    x: Tensor,
    *,
    margin: float,
    overshoot: float,
    bounds: tuple[float, float] | None,
    linf: bool,
) -> Tensor:
    """Move `shift` and `x` over the nearest boundary; see `attacks.deepfool_step`.

    Args:
        rows: (N, R - 1, ...) gradients of the other logits less that of the first.
        logits: (N, R), R >= 2, that of the class to leave in front.
        start: (N, ...) clean samples.
        shift: (N, ...) accumulated perturbation, updated.
        x: (N, ...) perturbed samples, written.
        margin: added to the distance.
        overshoot: `x = start + (1 + overshoot) * shift`.
        bounds: (low, high) of `x`, or None.
        linf: l_inf perturbations instead of l2.

    Returns:
        (N,) bool, True where there is no boundary to first order.

    Raises:
        RuntimeError: there are no native kernels for that device.
        ValueError: a tensor does not fit.
    """
    module = native.kernels(rows, logits, start, shift, x)
    samples, classes = logits.shape
    _check_shape("rows", rows, (samples, classes - 1, *start.shape[1:]))
    _check_shape("start", start, (samples, *start.shape[1:]))
    _check_shape("shift", shift, tuple(start.shape))
    _check_shape("x", x, tuple(start.shape))
    stuck = rows.new_empty(samples, dtype=torch.bool)
    sizes = rows.new_empty(samples, classes, dtype=torch.float64)
    module.deepfool_step(
        rows=rows.data_ptr(),
        logits=logits.data_ptr(),
        start=start.data_ptr(),
        shift=shift.data_ptr(),
        x=x.data_ptr(),
        stuck=stuck.data_ptr(),
        sizes=sizes.data_ptr(),
        samples=samples,
        class_count=classes,
        row_length=start[0].numel() if samples else 0,
        margin=margin,
        overshoot=overshoot,
        low=0.0 if bounds is None else bounds[0],
        high=0.0 if bounds is None else bounds[1],
        bounded=bounds is not None,
        linf=linf,
        **native.launch_arguments(rows),
    )
    return stuck


def jsma_step(
    rows: Tensor,
    x: Tensor,
    open_features: Tensor,
    *,
    theta: float,
    pixels: int,
    bounds: tuple[float, float],
) -> Tensor:
    """Change the most salient open features of `x`; see `attacks.jsma_step`.

    Args:
        rows: (N, 2, ...) gradients of the target logit and of the others' sum.
        x: (N, ...) perturbed samples, updated.
        open_features: (N, ...) bool, features that may be chosen, updated.
        theta: change of a chosen feature, not zero.
        pixels: features a step, 1 or 2.
        bounds: (low, high) of `x`.

    Returns:
        (N, pixels) int64, the features chosen, in order; -1 where none is salient.

    Raises:
        RuntimeError: there are no native kernels for that device.
        ValueError: a tensor does not fit.
    """
    module = native.kernels(rows, x, open_features)
    samples = len(x)
    _check_shape("rows", rows, (samples, 2, *x.shape[1:]))
    _check_shape("open_features", open_features, tuple(x.shape))
    if open_features.dtype != torch.bool:
        raise ValueError(f"`open_features` must be bool, got {open_features.dtype}")
    chosen = torch.empty(samples, pixels, dtype=torch.int64, device=x.device)
    strong = torch.empty(
        x.shape if pixels == 2 else (0,), dtype=torch.int64, device=x.device
    )
    module.jsma_step(
        rows=rows.data_ptr(),
        x=x.data_ptr(),
        open=open_features.data_ptr(),
        chosen=chosen.data_ptr(),
        strong=strong.data_ptr(),
        samples=samples,
        row_length=x[0].numel() if samples else 0,
        pixels=pixels,
        theta=theta,
        low=bounds[0],
        high=bounds[1],
        **native.launch_arguments(rows),
    )
    return chosen


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"`{name}` must be {shape}, got {tuple(tensor.shape)}")
