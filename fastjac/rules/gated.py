"""A convolution and the gates and max pool behind it, by the native kernels.

Behind a convolution stand gates and perhaps a max pool, so that only some of its
outputs carry a cotangent: one in four after a 2x2 pool, fewer after the ReLU. The list
of the live (pixel, channel) pairs is built once for all rows of a sample, and all three
passes touch live outputs only. Rows travel in the pooled domain: the unpooled tensor is
never written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastjac import native_conv
from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Samples, Sums
from fastjac.rules.convolution import Convolution
from fastjac.rules.pooling import Route

#: Bytes of the widest vector; strides of layouts are multiples of it.
VECTOR_BYTES = 64


class GatedConvolution(Rule):
    """``v = route(gate o (u * W))``, then perhaps another gate."""

    def __init__(
        self,
        convolution: Convolution,
        gate: Gate | None,
        route: Route | None,
        pooled_gate: Gate | None,
        out_shape: torch.Size,
        *,
        feeds_gated: bool,
        packed: Packed | None = None,
    ) -> None:
        self.convolution = convolution
        self.weights = convolution.weights
        self.gate, self.route, self.pooled_gate = gate, route, pooled_gate
        self.out_shape = out_shape
        #: Whether the next rule up is gated too and wants tangents channels-last.
        self.feeds_gated = feeds_gated
        self.packed = packed or Packed(convolution, route, out_shape)
        self._live: Live | None = None
        self._gathered: tuple[Tensor, Tensor] | None = None

    def pull(self, rows: Tensor) -> Tensor:
        compact = self._gather(rows)
        return self._run("pull", compact, self._new_input(rows))

    def push(self, tangents: Tensor) -> Tensor:
        live, count = self.live, tangents.shape[0]
        compact = tangents.new_empty(live.entries, self._compact_stride(count))
        self._run("push", compact, self._as_input(tangents))
        pushed = self._zero_rows(tangents)
        live.scatter(compact, pushed)
        return pushed

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is None:
            return
        gradient = torch.zeros_like(self.packed.weight)
        compact = self._gather(rows)
        self._run("weight", compact, self._as_input(tangents), gradient)
        self._gathered = None
        total.add(self.packed.unpacked(gradient))

    def narrow(self, samples: Samples) -> GatedConvolution:
        def part(rule: Any) -> Any:
            return None if rule is None else rule.narrow(samples)

        return GatedConvolution(
            self.convolution,
            part(self.gate),
            part(self.route),
            part(self.pooled_gate),
            torch.Size(
                (
                    self.out_shape[0] // samples.total * (samples.stop - samples.start),
                    *self.out_shape[1:],
                )
            ),
            feeds_gated=self.feeds_gated,
            packed=self.packed,
        )

    def describe(self) -> str:
        return f"gated, {self.live.density():.0%} of outputs live"

    def made_of(self) -> str:
        """Name the rules that this one stands for."""
        parts = {
            "Convolution": self.convolution,
            "Gate": self.gate,
            "MaxPool": self.route,
            "Gate ": self.pooled_gate,
        }
        return " + ".join(name.strip() for name, rule in parts.items() if rule)

    @property
    def live(self) -> Live:
        """The live outputs, listed when they are first asked for."""
        if self._live is None:
            self._live = Live(self)
        return self._live

    def _gather(self, rows: Tensor) -> Tensor:
        """Return the rows of the live outputs; pull's are kept for the gradient."""
        if self._gathered is not None and self._gathered[0] is rows:
            return self._gathered[1]
        live = self.live
        compact = rows.new_empty(live.entries, self._compact_stride(rows.shape[0]))
        live.gather(rows, compact)
        self._gathered = rows, compact
        return compact

    def _run(
        self,
        direction: str,
        compact: Tensor,
        input: Tensor,
        gradient: Tensor | None = None,
    ) -> Tensor:
        native_conv.gated_conv(
            direction,
            self.live,
            weight=self.packed.weight,
            compact=compact,
            input=input,
            row_count=input.shape[0],
            lanes_are_rows=self._lanes_are_rows(input.shape[0]),
            input_stride=self._input_stride(input.shape[0]),
            weight_gradient=gradient,
        )
        return input

    def _lanes_are_rows(self, count: int) -> bool:
        """Whether vectors hold rows (few channels) or channels (all other layers)."""
        channels, lanes = self.packed.in_channels, self.packed.lanes
        return count / padded(count, lanes) > channels / padded(channels, lanes)

    def _input_stride(self, count: int) -> int:
        lanes_are_rows = self._lanes_are_rows(count)
        return padded(
            count if lanes_are_rows else self.packed.in_channels, self.packed.lanes
        )

    def _compact_stride(self, count: int) -> int:
        if self._lanes_are_rows(count):
            return padded(count, self.packed.lanes)
        return count

    def _input_strides(self, count: int) -> tuple[int, ...]:
        """Return the strides of (R, n, C', H, W) that the kernels work on."""
        _, _, height, width = self.packed.in_shape
        stride = self._input_stride(count)
        if self._lanes_are_rows(count):
            pixel, row, channel = self.packed.in_channels * stride, 1, stride
        else:
            pixel, row, channel = count * stride, stride, 1
        return row, height * width * pixel, channel, width * pixel, pixel

    def _new_input(self, like: Tensor, zero: bool = False) -> Tensor:
        """Return a tensor (R, n, C', ...) in the kernels' layout."""
        count, samples = like.shape[:2]
        strides = self._input_strides(count)
        make = like.new_zeros if zero else like.new_empty
        buffer = make(samples * strides[1])
        shape = (count, samples, *self.packed.in_shape[1:])
        view = buffer.as_strided(shape, strides)
        return view.squeeze(3) if self.packed.rank == 1 else view

    def _as_input(self, tangents: Tensor) -> Tensor:
        """Return tangents in the kernels' layout, copied only if they are not."""
        strides = self._input_strides(tangents.shape[0])
        if self.packed.rank == 1:
            strides = strides[:3] + strides[4:]
        if _has_layout(tangents, strides, tangents.shape[1] * strides[1]):
            return tangents
        laid_out = self._new_input(tangents, zero=True)
        return laid_out.copy_(tangents)

    def _zero_rows(self, like: Tensor) -> Tensor:
        """Return zero tangents (R, n, C, ...) behind the pool for the next rule up."""
        count, samples = like.shape[:2]
        shape = (count, samples, *self.out_shape[1:])
        if not self.feeds_gated:
            return like.new_zeros(shape)
        lanes, channels = self.packed.lanes, self.out_shape[1]
        stride = padded(channels, lanes)
        spatial = self.out_shape[2:]
        whole = like.new_zeros(samples, *spatial, count, stride)
        return whole[..., :channels].movedim((-2, 0, -1), (0, 1, 2))


class Packed:
    """A convolution's geometry and its weights as the kernels want them."""

    def __init__(
        self, convolution: Convolution, route: Route | None, out_shape: torch.Size
    ) -> None:
        weight, g = convolution.weight, convolution.geometry
        self.rank = weight.dim() - 2
        in_shape = convolution.in_shape
        planes = route.in_shape if route is not None else out_shape
        self.in_shape = _planar(in_shape, self.rank)
        _, out_channels, height, width = _planar(planes, self.rank)
        self.in_channels = in_shape[1]
        self.lanes = VECTOR_BYTES // weight.itemsize
        self.geometry = native_conv.conv_geometry(
            in_channels=self.in_channels,
            out_channels=out_channels,
            in_size=self.in_shape[2:],
            out_size=(height, width),
            pooled_pixels=out_shape[2:].numel(),
            kernel=_pair(weight.shape[2:], 1),
            stride=_pair(g.stride, 1),
            padding=_pair(g.padding, 0),
            dilation=_pair(g.dilation, 1),
        )
        self.shape = weight.shape
        taps = weight.flatten(2).permute(2, 0, 1)
        stride = padded(self.in_channels, self.lanes)
        self.weight = weight.new_zeros(*taps.shape[:2], stride)
        self.weight[..., : self.in_channels] = taps

    def unpacked(self, packed: Tensor) -> Tensor:
        """Return a gradient laid out as the weight is."""
        taps = packed[..., : self.in_channels].permute(1, 2, 0)
        return taps.reshape(self.shape)


class Live:
    """The live outputs of a gated convolution for the samples of one chunk."""

    def __init__(self, rule: GatedConvolution) -> None:
        self.samples = rule.out_shape[0]
        self.geometry = rule.packed.geometry
        self.outputs = rule.out_shape[1:].numel()
        self.entries = self.samples * self.outputs
        weight = rule.packed.weight
        integers = weight.new_empty(3, self.entries, dtype=torch.int32)
        self.channels, self.sources, self.positions = integers.unbind(0)
        self.factors = weight.new_empty(self.entries)
        self.starts = weight.new_empty(
            self.samples, self.geometry.pixels + 1, dtype=torch.int32
        )
        self.route = None if rule.route is None else rule.route.index.contiguous()
        planes = rule.out_shape if rule.route is None else rule.route.in_shape
        planes = torch.Size((self.samples, *planes[1:]))
        native_conv.live_list(
            self,
            gate=_full(rule.gate, planes, weight.dtype),
            step=rule.gate is not None and rule.gate.step,
            pooled_gate=_full(rule.pooled_gate, rule.out_shape, weight.dtype),
            pooled_step=rule.pooled_gate is not None and rule.pooled_gate.step,
        )

    def gather(self, rows: Tensor, compact: Tensor) -> None:
        """Copy rows (R, n, C, ...) times the gates to live entries."""
        native_conv.live_rows(self, self._planes(rows), compact, gather=True)

    def scatter(self, compact: Tensor, rows: Tensor) -> None:
        """Copy live entries times the gates to rows (R, n, C, ...)."""
        native_conv.live_rows(self, self._planes(rows), compact, gather=False)

    def density(self) -> float:
        """Return the share of the convolution's outputs that are live."""
        live = int(self.starts[:, -1].sum())
        all_outputs = self.samples * self.geometry.out_channels * self.geometry.pixels
        return live / all_outputs

    @staticmethod
    def _planes(rows: Tensor) -> Tensor:
        """Flatten the pixels, which a view can do in every layout used here."""
        return rows.flatten(3) if rows.dim() > 3 else rows


def padded(count: int, lanes: int) -> int:
    """Return ``count`` rounded up to whole vectors."""
    return -(-count // lanes) * lanes


def _full(gate: Gate | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Return a gate's values at every output, contiguous."""
    if gate is None:
        return None
    return gate.values.to(dtype).expand(shape).contiguous()


def _planar(shape: torch.Size, rank: int) -> torch.Size:
    """Return (N, C, H, W), with H = 1 in front of a one-dimensional signal."""
    return shape if rank == 2 else torch.Size((*shape[:2], 1, shape[2]))


def _pair(values: Any, fill: int) -> tuple[int, int]:
    return (values[0], values[1]) if len(values) == 2 else (fill, values[0])


def _has_layout(tensor: Tensor, strides: tuple[int, ...], elements: int) -> bool:
    """Whether a tensor has these strides and its storage the padding behind them."""
    same = all(
        size == 1 or have == want
        for size, have, want in zip(tensor.shape, tensor.stride(), strides, strict=True)
    )
    room = tensor.untyped_storage().nbytes() // tensor.itemsize
    return same and tensor.storage_offset() + elements <= room
