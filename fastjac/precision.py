"""The precision of a sweep: float32 for networks in half precision, else their own.

A network in float16 or bfloat16, as a whole or under autocast, is linearised with the
weights and activations that its forward pass used, each widened to float32, which is
exact. Rows and tangents are float32 numbers then: their products over many layers
neither overflow nor vanish, the native kernels take them, and the gradient of a weight
is rounded once, on its way back to the half-precision copy.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Place:
    """Where and as what rows are held."""

    device: torch.device
    dtype: torch.dtype

    @staticmethod
    def of(value: Any) -> Place:
        """Return the place of rows at a value of the forward pass."""
        return Place(value.device, wide(value.dtype))


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products are computed in the dtype of their factors."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that rows have at values of ``dtype``.

    Example:
        >>> wide(torch.bfloat16), wide(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float32 if dtype in HALF else dtype


def widened(value: Any) -> Any:
    """Return a half-precision tensor in float32, differentiable; all else as it is."""
    if not isinstance(value, Tensor) or value.dtype not in HALF:
        return value
    with torch.enable_grad():
        return value.float()
