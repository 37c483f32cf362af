"""The live outputs of a gated layer: the list that all rows of a sample share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastjac import native_conv
from fastjac.rules.activation import Gate
from fastjac.rules.base import Samples
from fastjac.rules.pooling import Route

#: The arrays of a list, each with the samples in dimension 0.
LISTS = ("starts", "channels", "sources", "positions", "offsets", "factors")


class Live:
    """Which outputs are alive, sorted by the pixel that they come from.

    ``out_shape`` is (n, C, ...) behind the pool. The arrays are those of the struct
    ``LiveList`` in csrc/cpu/live_list.h, each with the samples in dimension 0.
    """

    geometry: Any
    out_shape: torch.Size
    starts: Tensor
    channels: Tensor
    sources: Tensor
    positions: Tensor
    offsets: Tensor
    factors: Tensor
    route: Tensor | None

    @staticmethod
    def listed(
        geometry: Any,
        planes: torch.Size,
        out_shape: torch.Size,
        gate: Gate | None,
        route: Route | None,
        pooled_gate: Gate | None,
        like: Tensor,
    ) -> Live:
        """List the live outputs of a layer.

        Args:
            geometry: from `native_conv.conv_geometry`.
            planes: (n, C, ...) before the pool.
            out_shape: (n, C, ...) behind it.
            gate: before the pool, or None.
            route: the pool, or None.
            pooled_gate: behind the pool, or None.
            like: a tensor of the rows' dtype and device.
        """
        live = Live()
        live.geometry, live.out_shape = geometry, out_shape
        shape = (out_shape[0], out_shape[1:].numel())
        integers = like.new_empty(4, *shape, dtype=torch.int32)
        live.channels, live.sources, live.positions, live.offsets = integers.unbind(0)
        live.factors = like.new_empty(shape)
        live.starts = like.new_empty(
            out_shape[0], geometry.pixels + 1, dtype=torch.int32
        )
        live.route = None if route is None else route.index.contiguous()
        native_conv.live_list(
            live,
            gate=_full(gate, planes, like.dtype),
            step=gate is not None and gate.step,
            pooled_gate=_full(pooled_gate, out_shape, like.dtype),
            pooled_step=pooled_gate is not None and pooled_gate.step,
        )
        return live

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return self.out_shape[0]

    @property
    def entries(self) -> int:
        """The number of entries that there is room for: as many as outputs."""
        return self.out_shape.numel()

    def narrow(self, samples: Samples) -> Live:
        """Return the list of a range of samples."""
        live = Live()
        live.geometry = self.geometry
        for name in LISTS:
            setattr(live, name, samples.of(getattr(self, name)))
        live.route = None if self.route is None else samples.of(self.route)
        live.out_shape = torch.Size((live.starts.shape[0], *self.out_shape[1:]))
        return live

    def gather(self, rows: Tensor, compact: Tensor) -> None:
        """Copy rows (R, n, C, ...) times the gates to live entries."""
        native_conv.live_rows(self, _planes(rows), compact, gather=True)

    def scatter(self, compact: Tensor, rows: Tensor) -> None:
        """Copy live entries times the gates to rows (R, n, C, ...)."""
        native_conv.live_rows(self, _planes(rows), compact, gather=False)

    def density(self) -> float:
        """Return the share of the layer's outputs, before the pool, that are live."""
        live = int(self.starts[:, -1].sum())
        outputs = self.samples * self.out_shape[1] * self.geometry.pixels
        return live / outputs


def _full(gate: Gate | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Return a gate's values at every output, contiguous."""
    if gate is None:
        return None
    return gate.values.to(dtype).expand(shape).contiguous()


def _planes(rows: Tensor) -> Tensor:
    """Return rows as (R, n, C, Q): the pixels in one dimension."""
    return rows.unsqueeze(3) if rows.dim() == 3 else rows.flatten(3)
