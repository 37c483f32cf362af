"""Checks of what a user hands to an attack, one message each."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fastjac import checks

Norm = Literal["l2", "linf"]
Bounds = tuple[float, float]
Model = Callable[[Tensor], Tensor]


def check_images(x: Tensor, bounds: Bounds | None) -> None:
    """Refuse an `x` that is no finite floating batch within `bounds`."""
    checks.check_input(x)
    if not bool(torch.isfinite(x).all()):
        raise ValueError("`x` must be finite; got NaN or infinity in it")
    if bounds is None:
        return
    check_bounds(bounds)
    if x.numel() and (x.min() < bounds[0] or x.max() > bounds[1]):
        raise ValueError(
            f"`x` must lie within `bounds` (={bounds}); got values in "
            f"[{x.min():.6g}, {x.max():.6g}]: clamp x or widen bounds"
        )


def check_bounds(bounds: Bounds) -> None:
    """Refuse `bounds` that are not (low, high) with low < high."""
    if len(bounds) != 2 or not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (low, high) with low < high; got {bounds}")


def check_norm(norm: str) -> None:
    """Refuse a `norm` other than "l2" and "linf"."""
    if norm not in ("l2", "linf"):
        raise ValueError(f"`norm` must be 'l2' or 'linf'; got {norm!r}")


def check_count(name: str, value: int, least: int) -> None:
    """Refuse a `value` that is no integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an int; got {type(value).__name__}")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}; got {value}")


def check_amount(name: str, value: float) -> None:
    """Refuse a `value` that is not a finite number of at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be a finite number >= 0; got {value}")


def check_classes(name: str, y: Tensor, x: Tensor) -> None:
    """Refuse class numbers that are not N integers on the device of `x`."""
    if not isinstance(y, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor; got {type(y).__name__}")
    if y.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise TypeError(f"`{name}` must hold integers, class numbers; got {y.dtype}")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"`{name}` must have shape {tuple(x.shape[:1])}, one class a sample; got "
            f"{tuple(y.shape)}"
        )
    if y.device != x.device:
        raise ValueError(
            f"`{name}` must be on the device of x ({x.device}); got {y.device}: use "
            f"{name}.to(x.device)"
        )


def check_range(name: str, y: Tensor, classes: int) -> None:
    """Refuse class numbers outside 0..classes-1."""
    if y.numel() and (y.min() < 0 or y.max() >= classes):
        raise ValueError(
            f"`{name}` must lie in 0..{classes - 1} for {classes} classes; "
            f"got {int(y.min())}..{int(y.max())}"
        )


def check_logits(logits: Tensor, x: Tensor) -> None:
    """Refuse what is not (N, K) with K of at least 2, computed from `x`."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = logits.shape if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"the model must return logits of shape (N, K) with N = {len(x)}; got {got}"
        )
    if logits.shape[1] < 2:
        raise ValueError(
            "the model must return at least 2 classes to attack; got K = 1. For one "
            "score s return torch.cat([-s, s], 1)"
        )
    if not logits.requires_grad:
        raise checks.detached()
