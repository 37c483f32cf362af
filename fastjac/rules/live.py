"""The live outputs of a gated layer: the list that all rows of a sample share."""

from __future__ import annotations

import weakref
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastjac import native_conv, workspace
from fastjac.rules.activation import Gate
from fastjac.rules.base import Samples
from fastjac.rules.layout import VECTOR_BYTES, padded
from fastjac.rules.pooling import Average, Route

#: From how many vectors of rows on, and up to which share of live inputs, rows of live
#: inputs alone are faster than rows of all of them (bench/NOTES.md).
FEWEST_VECTORS = 2
MOST_LIVE_INPUTS = 0.65


class Listing:
    """The arrays of the struct ``LiveList`` in csrc/cpu/live_list.h, samples first.

    They are made without contents, for ``outputs`` entries of each sample, in lent
    memory; on a GPU, in torch's.
    """

    def __init__(
        self, samples: int, outputs: int, pixels: int, like: Tensor, positions: bool
    ) -> None:
        entries, starts = samples * outputs, samples * (pixels + 1)
        words = [entries * like.itemsize // 4, *(3 + positions) * [entries], starts]
        size = 4 * sum(words)
        if like.device.type == "cpu":
            block = workspace.lists.borrow(size, self)
        else:
            block = like.new_empty(size, dtype=torch.uint8)
        arrays = block[:size].view(torch.int32).split(words)
        rows = [array.view(samples, -1) for array in arrays]
        self.factors = rows[0].view(like.dtype)
        self.channels, self.sources, self.offsets = rows[1:4]
        self.positions = rows[4] if positions else None
        self.starts = rows[-1]
        #: What this one is a part of: its memory is lent for its lifetime.
        self.whole: Listing | None = None

    def narrow(self, samples: Samples) -> Listing:
        """Return the part of a range of samples."""
        part = copy(self)
        part.whole = self
        for name in ("starts", "channels", "sources", "offsets", "factors"):
            setattr(part, name, samples.of(getattr(self, name)))
        if self.positions is not None:
            part.positions = samples.of(self.positions)
        return part


class Live:
    """Which outputs of a layer are alive, sorted by the pixel that they come from.

    They are listed when a pass first asks, so that a chunk of samples lists its own
    alone, in memory that the next chunk uses again.

    Args:
        geometry: from `native_conv.conv_geometry`.
        planes: (n, C, ...) before the pool.
        out_shape: (n, C, ...) behind it.
        gate: before the pool, or None.
        pool: a max pool, or an average whose windows are apart, or None.
        pooled_gate: behind the pool, or None.
        like: a tensor of the rows' dtype and device.
        positions: whether to list the entry of each output too, which passes whose
            vectors hold rows need, and all of those for a GPU.
    """

    def __init__(
        self,
        geometry: Any,
        planes: torch.Size,
        out_shape: torch.Size,
        gate: Gate | None,
        pool: Route | Average | None,
        pooled_gate: Gate | None,
        like: Tensor,
        *,
        positions: bool,
    ) -> None:
        self.geometry, self.planes, self.out_shape = geometry, planes, out_shape
        self.gate, self.pool, self.pooled_gate = gate, pool, pooled_gate
        self.like, self.positions = like, positions
        #: Of the average pool behind the layer, if there is one, and an element's
        #: weight.
        self.window, self.scale = (1, 1), 1.0
        if isinstance(pool, Average):
            self.window, self.scale = _pair(pool.window), pool.scale
        #: The part that was taken last, and of which samples: two rules may hold it.
        self._part: tuple[Samples, weakref.ref[Live]] | None = None

    @cached_property
    def route(self) -> Tensor | None:
        """Where each output behind a max pool comes from, contiguous."""
        return self.pool.index.contiguous() if isinstance(self.pool, Route) else None

    @cached_property
    def listing(self) -> Listing:
        """The list itself."""
        outputs = self.out_shape[1] * self.geometry.pooled_pixels
        pixels = self.geometry.pixels
        room = Listing(self.samples, outputs, pixels, self.like, self.positions)
        native_conv.live_list(
            self,
            room,
            gate=_full(self.gate, self.planes, self.like.dtype),
            step=self.gate is not None and self.gate.step,
            pooled_gate=_full(self.pooled_gate, self.out_shape, self.like.dtype),
            pooled_step=self.pooled_gate is not None and self.pooled_gate.step,
        )
        return room

    @cached_property
    def arrays(self) -> Any:
        """The addresses of the list's arrays, as the kernels' bindings take them."""
        return native_conv.live_arrays(self)

    @property
    def samples(self) -> int:
        """The number n of samples."""
        return self.out_shape[0]

    @property
    def entries(self) -> int:
        """The number of entries that there is room for: as many as outputs."""
        return self.samples * self.out_shape[1] * self.geometry.pooled_pixels

    def narrow(self, samples: Samples) -> Live:
        """Return the outputs of a range of samples, listed if these are."""
        if self._part is not None and self._part[0] is samples:
            part = self._part[1]()
            if part is not None:
                return part
        count = samples.stop - samples.start
        live = Live(
            self.geometry,
            torch.Size((count, *self.planes[1:])),
            torch.Size((count, *self.out_shape[1:])),
            None if self.gate is None else self.gate.narrow(samples),
            self.pool.narrow(samples) if isinstance(self.pool, Route) else self.pool,
            None if self.pooled_gate is None else self.pooled_gate.narrow(samples),
            self.like,
            positions=self.positions,
        )
        if "listing" in vars(self):
            live.listing = self.listing.narrow(samples)
        self._part = samples, weakref.ref(live)
        return live

    def read_alone(self, rows: int) -> bool:
        """Whether a convolution right above leaves out those that are dead."""
        lanes = VECTOR_BYTES // self.like.itemsize
        room = padded(rows, lanes)
        if room < FEWEST_VECTORS * lanes:
            return False
        return self.share() * room <= MOST_LIVE_INPUTS * rows

    def share(self) -> float:
        """Return the share of the outputs behind the pool that are live."""
        return self._count / max(1, self.entries)

    def gather(
        self,
        rows: Tensor,
        compact: Tensor,
        ones: Tensor | None = None,
        bias_gradient: Tensor | None = None,
    ) -> None:
        """Copy rows (R, n, C, ...) times the gates to live entries.

        ``bias_gradient`` (C,) receives the sum of those of each channel times ``ones``
        (n, R).
        """
        native_conv.live_rows(
            self,
            _planes(rows),
            compact,
            gather=True,
            ones=ones,
            bias_gradient=bias_gradient,
        )

    def scatter(
        self,
        compact: Tensor,
        rows: Tensor,
        bias: Tensor | None = None,
        ones: Tensor | None = None,
        live_only: bool = False,
    ) -> None:
        """Write live entries times the gates to rows (R, n, C, ...), zeros elsewhere.

        Before the gates ``bias[c] * ones[n, r]`` is added, if there is a bias. With
        ``live_only`` nothing is written elsewhere.
        """
        native_conv.live_rows(
            self,
            _planes(rows),
            compact,
            gather=False,
            live_only=live_only,
            bias=bias,
            ones=ones,
        )

    def expected_density(self) -> float:
        """Return `density`, or on a GPU a bound that nobody has to wait for."""
        if self.like.device.type == "cpu":
            return self.density()
        return self.geometry.pooled_pixels / self.geometry.pixels

    def density(self) -> float:
        """Return the share of the layer's outputs, before the pool, that are live."""
        return self._count / (self.samples * self.out_shape[1] * self.geometry.pixels)

    @cached_property
    def _count(self) -> int:
        return int(self.listing.starts[:, -1].sum())


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
