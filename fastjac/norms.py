"""Squared norms of rows, added up chunk by chunk, and what is made of their sum."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fastjac import native, native_norms
from fastjac.checks import poison
from fastjac.chunks import Chunk
from fastjac.linearization import Linearization


class Norms:
    """``P_i = sum_r ||row_r(x_i)||^2`` of every sample, in float32 or wider.

    On a GPU nothing waits to see whether the logits are finite: where they are not, the
    norms are NaN.

    Args:
        linearization: what the rows are pulled through.
        several: whether they come in more than one chunk.
    """

    def __init__(self, linearization: Linearization, several: bool) -> None:
        self.logits = linearization.logits
        dtype = torch.promote_types(linearization.x_dtype, torch.float32)
        shape = linearization.samples
        self._norms: Tensor | None = None
        self._totals: native_norms.Totals | None = None
        if native.on_gpu(self.logits):
            like = self.logits.new_empty(0, dtype=dtype)
            self._totals = native_norms.Totals(shape, like, several)
        else:
            self._norms = self.logits.new_zeros(shape, dtype=dtype)
        self.dtype = dtype

    def add(self, chunk: Chunk, rows: Tensor) -> None:
        """Add the squared norms of a chunk's rows (r, n, ...)."""
        part = slice(chunk.start, chunk.stop)
        if self._totals is not None:
            logits = self.logits[part].contiguous()
            self._totals.add(native_norms.dense(rows), chunk.start, logits)
            return
        assert self._norms is not None
        if rows.is_cpu and rows.dtype == self.dtype and native.usable(rows):
            self._norms[part].add_(native_norms.squared_norms(rows))
        else:
            dims = [d for d in range(rows.dim()) if d != 1]
            self._norms[part].add_(rows.to(self.dtype).square().sum(dims))

    @property
    def each(self) -> Tensor:
        """The norms, (N,)."""
        if self._totals is not None:
            return self._totals.norms.to(self.dtype)
        assert self._norms is not None
        return poison(self._norms, self.logits)

    @cached_property
    def total(self) -> Tensor:
        """``sum_i P_i``, once all rows have been added."""
        return self.each.sum() if self._totals is None else self._totals.totals[0]

    @cached_property
    def root(self) -> Tensor:
        """The root of `total`."""
        return self.total.sqrt() if self._totals is None else self._totals.totals[1]

    @property
    def inverse_root(self) -> Tensor:
        """One over `root`, 0 at 0."""
        if self._totals is not None:
            return self._totals.totals[2]
        return torch.where(self.root == 0, self.root, self.root.reciprocal())
