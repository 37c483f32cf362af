"""The live outputs of a gated layer: the list that all rows of a sample share."""

from __future__ import annotations

import weakref
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastjac import native_conv, workspace
from fastjac.rules.activation import Gate
from fastjac.rules.base import Samples
from fastjac.rules.pooling import Average, Route


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
    offsets: Tensor
    factors: Tensor
    positions: Tensor | None
    route: Tensor | None
    #: Of the average pool behind the layer, if there is one, and an element's weight.
    window: tuple[int, int] = (1, 1)
    scale: float = 1.0
    #: The list that this one is a part of: its memory is lent for its lifetime.
    whole: Live | None = None
    #: The part that was taken last, and of which samples: two rules may hold it.
    _part: tuple[Samples, weakref.ref[Live]] | None = None

    @staticmethod
    def listed(
        geometry: Any,
        planes: torch.Size,
        out_shape: torch.Size,
        gate: Gate | None,
        pool: Route | Average | None,
        pooled_gate: Gate | None,
        like: Tensor,
        *,
        positions: bool,
    ) -> Live:
        """List the live outputs of a layer.

        Args:
            geometry: from `native_conv.conv_geometry`.
            planes: (n, C, ...) before the pool.
            out_shape: (n, C, ...) behind it.
            gate: before the pool, or None.
            pool: a max pool, or an average whose windows are apart, or None.
            pooled_gate: behind the pool, or None.
            like: a tensor of the rows' dtype and device.
            positions: whether to list the entry of each output too, which passes
                whose vectors hold rows need, and all of those for a GPU.
        """
        live = Live()
        live.geometry, live.out_shape = geometry, out_shape
        live._lay_out(like, positions)
        live.route = pool.index.contiguous() if isinstance(pool, Route) else None
        if isinstance(pool, Average):
            live.window, live.scale = _pair(pool.window), pool.scale
        native_conv.live_list(
            live,
            gate=_full(gate, planes, like.dtype),
            step=gate is not None and gate.step,
            pooled_gate=_full(pooled_gate, out_shape, like.dtype),
            pooled_step=pooled_gate is not None and pooled_gate.step,
        )
        return live

    def _lay_out(self, like: Tensor, positions: bool) -> None:
        """Lay the arrays out in lent memory, of 32-bit words; on a GPU, in torch's."""
        samples, channels = self.out_shape[:2]
        entries = samples * channels * self.geometry.pooled_pixels
        starts = samples * (self.geometry.pixels + 1)
        words = [entries * like.itemsize // 4, *(3 + positions) * [entries], starts]
        if like.device.type == "cpu":
            block = workspace.lists.borrow(4 * sum(words), self)
        else:
            block = like.new_empty(4 * sum(words), dtype=torch.uint8)
        arrays = block[: 4 * sum(words)].view(torch.int32).split(words)
        rows = [array.view(samples, -1) for array in arrays]
        self.factors = rows[0].view(like.dtype)
        self.channels, self.sources, self.offsets = rows[1:4]
        self.positions = rows[4] if positions else None
        self.starts = rows[-1]

    @cached_property
    def arrays(self) -> Any:
        """The addresses of the arrays, as the kernels' bindings take them."""
        return native_conv.live_arrays(self)

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return self.out_shape[0]

    @property
    def entries(self) -> int:
        """The number of entries that there is room for: as many as outputs."""
        return self.channels.numel()

    def narrow(self, samples: Samples) -> Live:
        """Return the list of a range of samples."""
        if self._part is not None and self._part[0] is samples:
            part = self._part[1]()
            if part is not None:
                return part
        live = Live()
        live.geometry = self.geometry
        live.whole = self
        for name in ("starts", "channels", "sources", "offsets", "factors"):
            setattr(live, name, samples.of(getattr(self, name)))
        live.positions = None
        if self.positions is not None:
            live.positions = samples.of(self.positions)
        live.route = None if self.route is None else samples.of(self.route)
        live.out_shape = torch.Size((live.starts.shape[0], *self.out_shape[1:]))
        live.window, live.scale = self.window, self.scale
        self._part = samples, weakref.ref(live)
        return live

    def share(self) -> float:
        """Return the share of the outputs behind the pool that are live."""
        return int(self.starts[:, -1].sum()) / max(1, self.entries)

    def gather(self, rows: Tensor, compact: Tensor) -> None:
        """Copy rows (R, n, C, ...) times the gates to live entries."""
        native_conv.live_rows(self, _planes(rows), compact, gather=True)

    def scatter(self, compact: Tensor, rows: Tensor) -> None:
        """Add live entries times the gates to rows (R, n, C, ...)."""
        native_conv.live_rows(self, _planes(rows), compact, gather=False)

    def expected_density(self) -> float:
        """Return `density`, or on a GPU a bound that nobody has to wait for."""
        if self.factors.device.type == "cpu":
            return self.density()
        return self.geometry.pooled_pixels / self.geometry.pixels

    def density(self) -> float:
        """Return the share of the layer's outputs, before the pool, that are live."""
        live = int(self.starts[:, -1].sum())
        outputs = self.samples * self.out_shape[1] * self.geometry.pixels
        return live / outputs


def _pair(window: tuple[int, ...]) -> tuple[int, int]:
    return (1, *window) if len(window) == 1 else (window[0], window[1])


def _full(gate: Gate | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
    """Return a gate's values at every output, contiguous."""
    if gate is None:
        return None
    return gate.values.to(dtype).expand(shape).contiguous()


def _planes(rows: Tensor) -> Tensor:
    """Return rows as (R, n, C, Q): the pixels in one dimension.

    The other dimensions keep their strides, also those of size 1, which torch is free
    to change: kernels tell by them where a sample ends.
    """
    if rows.dim() == 3:
        return rows.unsqueeze(3)
    planes = rows.flatten(3)
    if planes.data_ptr() != rows.data_ptr():
        return planes
    return planes.as_strided(planes.shape, (*rows.stride()[:3], planes.stride(3)))
