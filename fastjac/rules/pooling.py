"""Pooling: averages, and routes to the element that won."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastjac.gate_pool import PoolAxis
from fastjac.rules.base import Rule, Samples


class Route(Rule):
    """``v[q] = u[index[q]]``: the winner of a max pool, or of a max over a dimension.

    The last ``spatial`` dimensions of ``u`` are flattened into a plane, and ``index``
    holds, for each output, the position of its input in that plane. Windows may
    overlap, so several outputs may have one input. ``axes`` say which inputs a window
    covers, where that is known.
    """

    moves = False

    def __init__(
        self,
        index: Tensor,
        in_shape: torch.Size,
        spatial: int,
        axes: Sequence[PoolAxis] = (),
    ) -> None:
        self.axes = axes
        self.index = index
        self.in_shape = in_shape
        self.spatial = spatial
        self.plane = math.prod(in_shape[-spatial:])
        self.samplewise = spatial < len(in_shape)

    def pull(self, rows: Tensor) -> Tensor:
        flat = rows.flatten(-self.spatial)
        index = self.index.flatten(-self.spatial).expand_as(flat)
        planes = flat.new_zeros(*flat.shape[:-1], self.plane)
        planes.scatter_add_(-1, index, flat)
        return planes.unflatten(-1, self.in_shape[-self.spatial :])

    def push(self, tangents: Tensor) -> Tensor:
        flat = tangents.flatten(-self.spatial)
        index = self.index.flatten(-self.spatial)
        index = index.expand(*flat.shape[:-1], index.shape[-1])
        return flat.gather(-1, index).unflatten(-1, self.index.shape[-self.spatial :])

    def narrow(self, samples: Samples) -> Route:
        index = samples.of(self.index)
        return Route(index, self.in_shape, self.spatial, self.axes)

    def describe(self) -> str:
        return "route"


class Choose(Rule):
    """``u`` gathered along ``dim`` at ``index``, keeping the dimension: max(dim)."""

    moves = False

    def __init__(self, index: Tensor, dim: int, size: int) -> None:
        self.index, self.dim, self.size = index, dim, size
        self.samplewise = dim != 0

    def pull(self, rows: Tensor) -> Tensor:
        shape = list(rows.shape)
        shape[self.dim + 1] = self.size
        index = self.index.expand_as(rows)
        return rows.new_zeros(shape).scatter_add_(self.dim + 1, index, rows)

    def push(self, tangents: Tensor) -> Tensor:
        index = self.index.expand(tangents.shape[0], *self.index.shape)
        return tangents.gather(self.dim + 1, index)

    def narrow(self, samples: Samples) -> Choose:
        return Choose(samples.of(self.index), self.dim, self.size)

    def describe(self) -> str:
        return "route"


class Folded(Rule):
    """A linear map given by torch's forward and backward function of N samples.

    The rows are folded into the batch. ``backward`` takes folded rows and an empty
    tensor of the folded input's shape.
    """

    moves = False

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], Tensor],
        in_shape: torch.Size,
        name: str,
    ) -> None:
        self.forward, self.backward = forward, backward
        self.in_shape, self.kind = in_shape, name

    def pull(self, rows: Tensor) -> Tensor:
        folded = rows.flatten(0, 1)
        like = rows.new_empty(1).expand(folded.shape[0], *self.in_shape[1:])
        return self.backward(folded, like).unflatten(0, rows.shape[:2])

    def push(self, tangents: Tensor) -> Tensor:
        return self.forward(tangents.flatten(0, 1)).unflatten(0, tangents.shape[:2])

    def describe(self) -> str:
        return self.kind


class Average(Folded):
    """An average pool.

    Where its windows neither overlap nor leave the plane, ``window`` is their size and
    ``scale`` what an element counts in its window; else ``window`` is empty.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor, Tensor], Tensor],
        in_shape: torch.Size,
        window: tuple[int, ...] = (),
        scale: float = 1.0,
    ) -> None:
        super().__init__(forward, backward, in_shape, "average")
        self.window, self.scale = window, scale
