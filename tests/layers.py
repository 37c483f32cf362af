"""Small modules that torch lacks and the drawn networks need, one operation each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std per channel, as image pipelines do it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-0.3, 0.4, channels))
        self.register_buffer("std", torch.linspace(0.5, 1.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


class Scale(nn.Module):
    """gamma * x with a learnt gamma per channel (layer scale)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma.view(-1, *[1] * (x.dim() - 2)) * x


class Divide(nn.Module):
    """x / t with a learnt t per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.divisor = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x / self.divisor.view(-1, *[1] * (x.dim() - 2))


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Maxout(nn.Module):
    """Largest of ``pieces`` neighbouring channels; ``op`` is "max" or "amax"."""

    def __init__(self, pieces: int, op: str) -> None:
        super().__init__()
        self.pieces, self.op = pieces, op

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], -1, self.pieces, *x.shape[2:])
        return grouped.amax(2) if self.op == "amax" else grouped.max(2).values


class Residual(nn.Module):
    """Adds or subtracts a branch: x + f(x), x - f(x), f(x) - x or x + a f(x)."""

    def __init__(self, branch: nn.Module, form: str) -> None:
        super().__init__()
        self.branch, self.form = branch, form

    def forward(self, x: Tensor) -> Tensor:
        f = self.branch(x)
        if self.form == "x - f":
            return x - f
        if self.form == "f - x":
            return f - x
        if self.form == "x + 0.7 f":
            return torch.add(x, f, alpha=0.7)
        if self.form == "x - 0.7 f":
            return torch.sub(x, f, alpha=0.7)
        if self.form == "f += x":
            f += x
            return f
        return x + f


class Concatenate(nn.Module):
    """cat([x, f(x)]) along ``dim``."""

    def __init__(self, branch: nn.Module, dim: int = 1) -> None:
        super().__init__()
        self.branch, self.dim = branch, dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], self.dim)


class Stack(nn.Module):
    """stack([x, f(x)]) reduced over the new axis by sum, mean, max or amax."""

    def __init__(self, branch: nn.Module, dim: int, op: str) -> None:
        super().__init__()
        self.branch, self.dim, self.op = branch, dim, op

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([x, self.branch(x)], self.dim)
        if self.op == "max":
            return both.max(self.dim).values
        return getattr(both, self.op)(self.dim)


class Split(nn.Module):
    """Splits the channels, sends the first part through a branch, joins again.

    ``op`` is "split", "chunk", "tensor_split" or "slice"; a part may have any size.
    """

    def __init__(self, branch: nn.Module, first: int, op: str) -> None:
        super().__init__()
        self.branch, self.first, self.op = branch, first, op

    def forward(self, x: Tensor) -> Tensor:
        rest = x.shape[1] - self.first
        if self.op == "slice":
            head, tail = x[:, : self.first], x[:, self.first :]
        elif self.op == "tensor_split":
            head, tail = torch.tensor_split(x, [self.first], dim=1)
        else:
            head, tail = torch.split(x, [self.first, rest], dim=1)
        return torch.cat([tail, self.branch(head)], 1)


class SqueezeExcite(nn.Module):
    """x times a sigmoid a channel of its means (Hu et al., 2018)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, hidden, 1)
        self.up = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(pooled))))


class Twice(nn.Module):
    """One module applied twice in a row, so that its weights are shared."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x).relu())


class Siamese(nn.Module):
    """One module applied to x and to x / 2 + 1; the results are added."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner(x / 2 + 1)


class Reduce(nn.Module):
    """Mean or sum over axes."""

    def __init__(self, op: str, dims: Sequence[int], keepdim: bool = False) -> None:
        super().__init__()
        self.op, self.dims, self.keepdim = op, tuple(dims), keepdim

    def forward(self, x: Tensor) -> Tensor:
        return getattr(x, self.op)(self.dims, keepdim=self.keepdim)


class Shape(nn.Module):
    """One shape-only operation on (N, C, ...), named by ``op``."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        operations = {
            "transpose": lambda: x.transpose(1, -1),
            "permute": lambda: x.permute(0, *range(2, x.dim()), 1),
            "view": lambda: x.reshape(x.shape[0], -1, *x.shape[2:-1], 1),
            "unsqueeze": lambda: x.unsqueeze(1).squeeze(1),
            "expand": lambda: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]).flatten(1, 2),
            "repeat": lambda: torch.cat([x, x], 1),
            "crop": lambda: x[..., : max(1, x.shape[-1] - 1)],
            "stride": lambda: x[..., ::2],
            "select": lambda: x.select(1, x.shape[1] - 1).unsqueeze(1),
            "narrow": lambda: x.narrow(1, 0, max(1, x.shape[1] - 1)),
            "negate": lambda: -x,
            "contiguous": lambda: x.transpose(1, -1).contiguous(),
        }
        return operations[self.op]()


SHAPE_OPERATIONS = (
    "transpose", "permute", "view", "unsqueeze", "expand", "repeat",
    "crop", "stride", "select", "narrow", "negate", "contiguous",
)  # fmt: skip


class Constant(nn.Module):
    """Arithmetic with numbers: 2 x + 1, x / 3 - 1, 1 - x."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "x / 3 - 1":
            return x / 3 - 1
        if self.form == "1 - x":
            return 1 - x
        return 2 * x + 1
