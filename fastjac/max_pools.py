"""Max pools of a forward pass by a native kernel.

On a CPU torch compares the elements of contiguous images one by one, and so spends as
long on the paper's two max pools as on the two convolutions before them. Within
`native_max_pools` those with 2x2 windows side by side run some twenty times as fast,
whoever calls them. Values, winners and autograd's graph are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastjac import native


def native_max_pools() -> AbstractContextManager[object]:
    """Return a context in which `torch.nn.functional.max_pool2d` may run natively.

    Example:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> with native_max_pools():
        ...     pooled = torch.nn.functional.max_pool2d(images, 2)
        >>> bool((pooled == torch.nn.functional.max_pool2d(images, 2)).all())
        True
    """
    return _NativeMaxPools() if native.available() else nullcontext()


class _NativeMaxPools(TorchDispatchMode):
    """Sees the operators below autograd, which makes its graph as ever."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is _POOL and not kwargs and _side_by_side(*args):
            return _max_pool(args[0])
        return func(*args, **(kwargs or {}))


_POOL = torch.ops.aten.max_pool2d_with_indices.default


def _side_by_side(
    images: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> bool:
    """Whether the kernel takes this max pool, whose arguments are those of aten."""
    return (
        set(kernel) == {2}
        and set(stride) <= {2}
        and set(padding) == {0}
        and set(dilation) == {1}
        and not ceil_mode
        and type(images) is Tensor
        and images.dim() in (3, 4)
        and images.shape[-1] >= 2 <= images.shape[-2]
        and native.has("max_pool", images)
    )


def _max_pool(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the winners `(..., H // 2, W // 2)` and their places in the planes."""
    *planes, height, width = images.shape
    shape = (*planes, height // 2, width // 2)
    values = images.new_empty(shape)
    places = images.new_empty(shape, dtype=torch.int64)
    native.kernels(images).max_pool(
        input=images.data_ptr(),
        values=values.data_ptr(),
        places=places.data_ptr(),
        planes=math.prod(planes),
        height=height,
        width=width,
        **native.launch_arguments(images),
    )
    return values, places
