"""Wrappers of the kernels that reduce rows to norms; see csrc/*/squared_norms.*."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastjac import native


def squared_norms(rows: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""Squared norm of each sample's rows, accumulated in float64.

    $$norms_n = \sum_r weights_r \sum_m rows_{rnm}^2$$

    The result does not depend on the number of threads.

    Args:
        rows: (R, N, ...), float32 or float64, contiguous.
        weights: (R,) float64, or None for all ones.

    Returns:
        (N,), float64.

    Raises:
        RuntimeError: there are no native kernels for that device.
        ValueError: a tensor does not fit.

    Example:
        >>> if native.available():
        ...     print(squared_norms(torch.ones(3, 2, 4)).tolist())
        ... else:
        ...     print([12.0, 12.0])
        [12.0, 12.0]
    """
    module = native.kernels(rows)
    if rows.dim() < 2:
        raise ValueError(f"`rows` must be (R, N, ...), got {tuple(rows.shape)}")
    row_count, samples = rows.shape[:2]
    if weights is not None:
        native.kernels(weights)
        if weights.shape != (row_count,) or weights.dtype != torch.float64:
            raise ValueError(
                f"`weights` must be ({row_count},) float64, one for each row, "
                f"got {tuple(weights.shape)} {weights.dtype}"
            )
        if weights.device != rows.device:
            raise ValueError(
                f"`weights` is on {weights.device} but `rows` is on {rows.device}"
            )
    row_length = rows[0, 0].numel() if samples and row_count else 0
    pieces = -(-row_length // module.SQUARED_NORMS_PIECE)
    partials = rows.new_empty(samples * row_count * pieces, dtype=torch.float64)
    norms = rows.new_empty(samples, dtype=torch.float64)
    module.squared_norms(
        rows=rows.data_ptr(),
        weights=0 if weights is None else weights.data_ptr(),
        partials=partials.data_ptr(),
        norms=norms.data_ptr(),
        row_count=row_count,
        samples=samples,
        row_length=row_length,
        **native.launch_arguments(rows),
    )
    return norms


@dataclass
class Totals:
    """Squared norms of samples and what their sum is, on a GPU.

    Args:
        samples: how many.
        like: a tensor on the device, of the dtype of the totals.
        several: whether rows are added in several parts, so that all begins at zero.
    """

    samples: int
    like: Tensor
    several: bool
    #: (N,) float64.
    norms: Tensor = field(init=False)
    #: (3,): the sum of the norms, its root, and one over that, 0 at 0.
    totals: Tensor = field(init=False)

    def __post_init__(self) -> None:
        make = self.like.new_zeros if self.several else self.like.new_empty
        self.norms = make(self.samples, dtype=torch.float64)
        self.totals = self.like.new_empty(3)

    def add(self, rows: Tensor, first: int, logits: Tensor) -> None:
        """Add the squared norms of rows (R, n, M) of the samples from ``first`` on.

        Args:
            rows: contiguous, of any floating-point dtype but wider than the totals.
            first: number of the first sample.
            logits: (n, K), contiguous; where they are not finite, a norm becomes NaN.
        """
        bindings = native.bindings_of(rows)
        row_count, samples, length = rows.shape
        pieces = -(-length // bindings.SQUARED_NORMS_PIECE)
        partials = rows.new_empty(samples * row_count * pieces, dtype=torch.float64)
        bindings.squared_norms_and_totals(
            rows=rows.data_ptr(),
            partials=partials.data_ptr(),
            norms=self.norms.data_ptr(),
            row_count=row_count,
            first=first,
            samples=samples,
            all_samples=self.samples,
            row_length=length,
            add=self.several,
            watch=logits.data_ptr(),
            watch_each=logits.shape[1],
            watch_dtype=native.dtype_of(logits),
            totals=self.totals.data_ptr(),
            **native.launch_arguments(rows),
        )


def dense(rows: Tensor) -> Tensor:
    """Return rows (R, n, ...) as (R', n, M), contiguous, with the same norms.

    Rows whose samples lie apart from each other, as the gated kernels leave them, are
    one long row a sample, in whatever order; others are copied if they have gaps.
    """
    if not rows.is_contiguous():
        by_sample = rows.movedim(1, 0)
        order = sorted(range(1, rows.dim()), key=by_sample.stride, reverse=True)
        by_sample = by_sample.permute(0, *order)
        if by_sample.is_contiguous():
            return by_sample.flatten(1).unsqueeze(0)
    return rows.contiguous().flatten(2)
