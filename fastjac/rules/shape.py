"""Maps that only move, copy, add up or drop elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastjac.precision import Place
from fastjac.rules.base import Rule, repeats


class Reshape(Rule):
    """View, flatten, squeeze, unsqueeze: the same elements in another shape."""

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        self.in_shape, self.out_shape = in_shape, out_shape
        self.samplewise = len(in_shape) > 0 and len(out_shape) > 0

    def pull(self, rows: Tensor) -> Tensor:
        return self._reshape(rows, self.in_shape)

    def push(self, tangents: Tensor) -> Tensor:
        return self._reshape(tangents, self.out_shape)

    def apart(self, samples: int) -> bool:
        return self.samplewise and all(
            shape[0] > 0 and shape[0] % samples == 0
            for shape in (self.in_shape, self.out_shape)
        )

    def _reshape(self, rows: Tensor, shape: torch.Size) -> Tensor:
        if not self.samplewise:
            return rows.reshape(rows.shape[0], *shape)
        return rows.reshape(rows.shape[0], -1, *shape[1:])


class Permute(Rule):
    """``v = u.permute(dims)``."""

    def __init__(self, dims: Sequence[int]) -> None:
        self.dims = [0, *(d + 1 for d in dims)]
        self.inverse = [self.dims.index(d) for d in range(len(self.dims))]
        self.samplewise = len(dims) == 0 or dims[0] == 0

    def pull(self, rows: Tensor) -> Tensor:
        return rows.permute(self.inverse)

    def push(self, tangents: Tensor) -> Tensor:
        return tangents.permute(self.dims)


class Expand(Rule):
    """``v = u.expand(...)``: broadcasting; its transpose sums over what it repeated."""

    def __init__(self, in_shape: torch.Size, out_shape: torch.Size) -> None:
        added = len(out_shape) - len(in_shape)
        padded = (1,) * added + tuple(in_shape)
        self.added = added
        self.sizes = tuple(out_shape)
        self.repeated = [
            d + 1
            for d, (before, after) in enumerate(zip(padded, out_shape, strict=True))
            if before == 1 and after != 1
        ]
        self.samplewise = added == 0 and 1 not in self.repeated

    def pull(self, rows: Tensor) -> Tensor:
        if self.repeated:
            rows = rows.sum(self.repeated, keepdim=True)
        return rows.flatten(1, 1 + self.added) if self.added else rows

    def push(self, tangents: Tensor) -> Tensor:
        for _ in range(self.added):
            tangents = tangents.unsqueeze(1)
        sizes = list(self.sizes)
        if self.samplewise:
            sizes[0] = tangents.shape[1]
        return tangents.expand(tangents.shape[0], *sizes)


class Pad(Rule):
    """``v = F.pad(u, amounts)`` with zeros; negative amounts crop, as a slice does."""

    def __init__(self, amounts: Sequence[int], rank: int) -> None:
        self.amounts = list(amounts)
        self.samplewise = not any(self.amounts[2 * (rank - 1) :])

    def pull(self, rows: Tensor) -> Tensor:
        if self._crops():
            return F.pad(rows, [-amount for amount in self.amounts])
        return self._part(rows)

    def push(self, tangents: Tensor) -> Tensor:
        return F.pad(tangents, self.amounts)

    def push_into(self, tangents: Tensor, total: Tensor) -> None:
        if self._crops():
            super().push_into(tangents, total)
        else:
            self._part(total).add_(tangents)

    def _crops(self) -> bool:
        return any(amount < 0 for amount in self.amounts)

    def _part(self, padded: Tensor) -> Tensor:
        """Return the part of a padded tensor that is not padding, as a view."""
        pairs = zip(self.amounts[::2], self.amounts[1::2], strict=True)
        for d, (before, behind) in enumerate(pairs):
            dim = padded.dim() - 1 - d
            size = padded.shape[dim] - before - behind
            padded = padded.narrow(dim, before, size)
        return padded


class Slice(Rule):
    """``v = u[..., start:stop:step, ...]`` along ``dim`` of length ``size``."""

    def __init__(self, dim: int, start: int, stop: int, step: int, size: int) -> None:
        self.dim, self.size = dim, size
        start, stop, self.step = slice(start, stop, step).indices(size)
        self.start, self.stop = start, max(start, stop)
        self.samplewise = dim != 0 or (start, stop, step) == (0, size, 1)

    def pull(self, rows: Tensor) -> Tensor:
        if self._everything():
            return rows
        shape = list(rows.shape)
        shape[self.dim + 1] = self.size
        whole = rows.new_zeros(shape)
        self._part(whole).copy_(rows)
        return whole

    def push(self, tangents: Tensor) -> Tensor:
        return tangents if self._everything() else self._part(tangents)

    def pull_into(self, rows: Tensor, total: Tensor) -> None:
        self._part(total).add_(rows)

    def _everything(self) -> bool:
        return (self.start, self.stop, self.step) == (0, self.size, 1)

    def _part(self, tensor: Tensor) -> Tensor:
        index = [slice(None)] * (self.dim + 1)
        return tensor[(*index, slice(self.start, self.stop, self.step))]


class Cast(Rule):
    """A change of dtype or device, as autocast and ``.to()`` make."""

    def __init__(self, source: Place, target: Place) -> None:
        self.source, self.target = source, target

    def pull(self, rows: Tensor) -> Tensor:
        return rows.to(self.source.device, self.source.dtype)

    def push(self, tangents: Tensor) -> Tensor:
        return tangents.to(self.target.device, self.target.dtype)


class Factor(Rule):
    """``v = factor * u`` for a number: negation, alpha of add, a mean's 1/n."""

    moves = False

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def pull(self, rows: Tensor) -> Tensor:
        return rows * self.factor

    def push(self, tangents: Tensor) -> Tensor:
        return self.pull(tangents)

    def overwrite(self, rows: Tensor, up: bool = False) -> Tensor:
        return self.pull(rows) if repeats(rows) else rows.mul_(self.factor)
