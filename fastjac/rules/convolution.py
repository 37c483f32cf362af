"""Convolutions of one, two and three dimensions, also transposed, by torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastjac import native
from fastjac.rules.base import Rule, Sums
from fastjac.rules.linear import add_bias_gradient, add_constant, scaled_bias


@dataclass(frozen=True)
class Geometry:
    """How a convolution's window moves; one entry a spatial dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


class Convolution(Rule):
    """``v = u * W`` for ``u`` of shape (N, C_in, ...) by torch's dense convolution.

    The rows are folded into the batch, (R * N, C, ...), for every product. oneDNN takes
    images fastest with their channels last, so that is how it gets and returns them.
    """

    moves = False

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        in_shape: torch.Size,
        bias: Tensor | None = None,
    ) -> None:
        self.weights, self.biases = (weight,), (bias,)
        self.geometry = geometry
        self.in_shape = in_shape
        self.format = _memory_format(weight, geometry)
        self.weight = weight.detach().contiguous(memory_format=self.format)

    def pull(self, rows: Tensor) -> Tensor:
        folded = self._folded(rows)
        # Its shape and layout are looked at, its memory is never touched.
        like = torch.empty(
            (folded.shape[0], *self.in_shape[1:]),
            dtype=rows.dtype,
            device=rows.device,
            memory_format=self.format,
        )
        pulled = self._backward(folded, like, needs=(True, False, False))[0]
        return pulled.unflatten(0, rows.shape[:2])

    def push(self, tangents: Tensor) -> Tensor:
        g = self.geometry
        pushed = torch.ops.aten.convolution(
            self._folded(tangents),
            self.weight,
            None,
            g.stride,
            g.padding,
            g.dilation,
            g.transposed,
            g.output_padding,
            g.groups,
        )
        pushed = pushed.unflatten(0, tangents.shape[:2])
        return add_constant(pushed, self.biases[0], self.ones)

    def bias_gradients(self, rows: Tensor, sums: Sums) -> None:
        add_bias_gradient(rows, self.ones, sums[0])

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is None:
            return
        folded = self._folded(rows), self._folded(tangents)
        total.add(self._backward(*folded, needs=(False, True, False))[1])

    def scaled(self, factor: Tensor) -> Convolution:
        """Return this convolution with output channel c multiplied by ``factor[c]``."""
        with torch.enable_grad():
            scale = factor.view(-1, *(1,) * (self.weight.dim() - 1))
            weight = self.weights[0] * scale
            bias = scaled_bias(self.biases[0], factor)
        scaled = Convolution(weight, self.geometry, self.in_shape, bias)
        scaled.elements, scaled.forward_dtype = self.elements, self.forward_dtype
        return scaled

    @property
    def multiplications(self) -> int:
        g, taps = self.geometry, self.weight.shape[2:]
        pixels = self.in_shape[2:].numel()
        if not g.transposed:
            pixels = math.prod(
                (size + 2 * p - d * (tap - 1) - 1) // s + 1
                for size, tap, s, p, d in zip(
                    self.in_shape[2:], taps, g.stride, g.padding, g.dilation,
                    strict=True,
                )
            )  # fmt: skip
        return self.in_shape[0] * pixels * self.weight.numel()

    def describe(self) -> str:
        groups = self.geometry.groups
        of = f" of {groups} groups" if groups > 1 else ""
        return f"dense, torch convolution{of}"

    def _folded(self, rows: Tensor) -> Tensor:
        return rows.flatten(0, 1).contiguous(memory_format=self.format)

    def _backward(
        self, rows: Tensor, tangents: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        g = self.geometry
        return torch.ops.aten.convolution_backward(
            rows,
            tangents,
            self.weight,
            None,
            g.stride,
            g.padding,
            g.dilation,
            g.transposed,
            g.output_padding,
            g.groups,
            needs,
        )


def _memory_format(weight: Tensor, geometry: Geometry) -> torch.memory_format:
    """Return how images are laid out for a convolution."""
    if (
        weight.dim() == 4
        and not native.waits(weight)
        and weight.dtype in (torch.float32, torch.bfloat16)
        and not geometry.transposed
        and torch.backends.mkldnn.is_available()
    ):
        return torch.channels_last
    return torch.contiguous_format
