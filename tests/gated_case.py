"""A drawn gated convolution, its arrays, and what is expected of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import strategies as st


@dataclass(frozen=True)
class Case:
    """Sizes of a convolution, the pool behind it, and how it is run."""

    seed: int
    samples: int
    rows: int
    channels: tuple[int, int]  # in, out
    size: tuple[int, int]  # of the input
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    pool: tuple[int, int] | None  # kernel and stride of a max pool
    average: tuple[int, int] | None  # windows of an average pool that lie side by side
    gate: str  # "none", "step" or "factor"
    pooled_gate: str
    dtype: Any

    @property
    def out_size(self) -> tuple[int, int]:
        pairs = zip(self.size, self._extents(), self.stride, self.padding, strict=True)
        out_y, out_x = ((n + 2 * p - e) // s + 1 for n, e, s, p in pairs)
        return out_y, out_x

    def _extents(self) -> list[int]:
        pairs = zip(self.kernel, self.dilation, strict=True)
        return [(k - 1) * d + 1 for k, d in pairs]

    def geometry(self, bindings: Any) -> Any:
        """The object that the kernels take."""
        return bindings.ConvGeometry(
            in_channels=self.channels[0],
            out_channels=self.channels[1],
            in_height=self.size[0],
            in_width=self.size[1],
            out_height=self.out_size[0],
            out_width=self.out_size[1],
            pooled_pixels=Arrays(self).pooled,
            kernel_y=self.kernel[0],
            kernel_x=self.kernel[1],
            stride_y=self.stride[0],
            stride_x=self.stride[1],
            padding_y=self.padding[0],
            padding_x=self.padding[1],
            dilation_y=self.dilation[0],
            dilation_x=self.dilation[1],
        )


@st.composite
def cases(draw: Any) -> Case:
    """Small convolutions of every kind."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, dilation = pair(1, 3), pair(1, 3), pair(1, 2)
    padding = pair(0, 2)
    smallest = [
        max(1, (k - 1) * d + 1 - 2 * p)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    size = tuple(n + draw(st.integers(0, 5)) for n in smallest)
    gates = st.sampled_from(["none", "step", "factor"])
    case = Case(
        seed=draw(st.integers(0, 2**32 - 1)),
        samples=draw(st.integers(1, 3)),
        rows=draw(st.sampled_from([1, 2, 3, 4, 5, 9, 10, 11, 13, 20])),
        channels=(
            draw(st.sampled_from([1, 2, 3, 4, 7, 8, 12, 33])),
            draw(st.sampled_from([1, 2, 5, 12, 70])),
        ),
        size=size,  # type: ignore[arg-type]
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        pool=None,
        average=None,
        gate=draw(gates),
        pooled_gate=draw(gates),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
    )
    least = min(case.out_size)
    kind = draw(st.sampled_from(["none", "max", "average"]))
    if kind == "average":
        windows = tuple(draw(st.integers(1, min(3, size))) for size in case.out_size)
        case = Case(**{**vars(case), "average": windows, "pooled_gate": "none"})
    if kind == "max":
        window = draw(st.integers(1, min(3, least)))
        case = Case(**{**vars(case), "pool": (window, draw(st.integers(1, window)))})
    return case


class Arrays:
    """The values of a case: gates, routes, weights, rows; and what lives."""

    def __init__(self, case: Case) -> None:
        self.case = case
        rng = np.random.default_rng(case.seed)
        n, (inputs, outputs), (height, width) = (
            case.samples,
            case.channels,
            case.out_size,
        )
        self.pixels = height * width
        planes = rng.standard_normal((n, outputs, height, width))
        self.route: np.ndarray | None = None
        self.pooled = self.pixels
        if case.pool is not None:
            _, route = F.max_pool2d(
                torch.from_numpy(planes.round()), *case.pool, return_indices=True
            )
            self.route = route.flatten(2).numpy()
            self.pooled = self.route.shape[2]
        #: The places of rows behind an average pool, else as many as `pooled`.
        self.places = self.pooled
        if case.average is not None:
            sizes = zip(case.out_size, case.average, strict=True)
            self.places = int(np.prod([size // window for size, window in sizes]))
        self.gate = self._gate(rng, case.gate, self.pixels)
        self.pooled_gate = self._gate(rng, case.pooled_gate, self.pooled)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(case.dtype)

        self.weight = normal(outputs, inputs, *case.kernel)
        self.rows = normal(case.rows, n, outputs, self.places)
        self.tangents = normal(case.rows, n, inputs, *case.size)

    def _gate(self, rng: Any, kind: str, pixels: int) -> np.ndarray | None:
        if kind == "none":
            return None
        n, outputs = self.case.samples, self.case.channels[1]
        values = rng.standard_normal((n, outputs, pixels))
        values *= rng.random(values.shape) < 0.6
        return values.astype(self.case.dtype)

    def source(self, q: int) -> int:
        """The place of rows that q belongs to; -1 if it is in no window."""
        if self.case.average is None:
            return q
        (window_y, window_x), (height, width) = self.case.average, self.case.out_size
        y, x = q // width // window_y, q % width // window_x
        inside = y < height // window_y and x < width // window_x
        return y * (width // window_x) + x if inside else -1

    @property
    def scale(self) -> float:
        """What an element counts in its average."""
        return 1.0 if self.case.average is None else 1 / np.prod(self.case.average)

    def entries(self, n: int) -> list[tuple[int, int, int, float]]:
        """(pixel, channel, output, factor) of what lives, in order."""
        found = []
        for c in range(self.case.channels[1]):
            for q in range(self.pooled):
                pixel = q if self.route is None else int(self.route[n, c, q])
                factor = self.case.dtype(self.scale)
                if self.source(q) < 0:
                    continue
                if self.gate is not None:
                    value = self.gate[n, c, pixel]
                    step = self.case.gate == "step"
                    factor = factor * (self.case.dtype(value > 0) if step else value)
                if self.pooled_gate is not None:
                    value = self.pooled_gate[n, c, q]
                    step = self.case.pooled_gate == "step"
                    factor = factor * (self.case.dtype(value > 0) if step else value)
                if factor != 0:
                    found.append((pixel, c, q, factor))
        return sorted(found, key=lambda entry: entry[:3])

    def planes_of(self, compact: np.ndarray) -> torch.Tensor:
        """Rows of the living (N, C Q, stride) at the convolution's own outputs."""
        case, outputs = self.case, self.case.channels[1]
        planes = np.zeros((case.rows, case.samples, outputs, self.pixels))
        for n in range(case.samples):
            for e, (pixel, c, _, _) in enumerate(self.entries(n)):
                planes[:, n, c, pixel] += compact[n, e, : case.rows]
        shape = (case.rows * case.samples, outputs, *case.out_size)
        return torch.from_numpy(planes).reshape(shape)

    def convolved(self, tangents: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The convolution of (R N, C', H', W') in float64."""
        case = self.case
        return F.conv2d(
            tangents, weight, None, case.stride, case.padding, case.dilation
        )
