"""Elementwise factors: gates of activations, dropout masks, learned scales."""

from __future__ import annotations

import torch
from torch import Tensor

from fastjac import gate_pool, native, workspace
from fastjac.native_scale import scale_push
from fastjac.rules.base import Rule, Samples, Sums, is_per_sample, repeats

#: Elements of one row from which a row at a time is read faster than all of them.
LONG_ROW = 4096


class Elementwise(Rule):
    """``v = f o u``: all rows are multiplied by one factor, down as up."""

    moves = False

    def factor(self, dtype: torch.dtype) -> Tensor:
        """Return ``f``, which broadcasts against ``u``, for rows of ``dtype``."""
        raise NotImplementedError

    def pull(self, rows: Tensor) -> Tensor:
        factor = self._laid_out(rows)
        if torch.result_type(rows, factor) != rows.dtype:
            return rows * factor
        return torch.mul(rows, factor, out=workspace.empty_as(rows))

    def push(self, tangents: Tensor) -> Tensor:
        return self.pull(tangents)

    def overwrite(self, rows: Tensor, up: bool = False) -> Tensor:
        return self.pull(rows) if repeats(rows) else rows.mul_(self._laid_out(rows))

    def _laid_out(self, rows: Tensor) -> Tensor:
        """Return the factor as the rows are laid out.

        Where the rows have their channels last, the factor gets them last too, a small
        copy that all rows share, so that both are read along the same dimension.
        """
        factor = self.factor(rows.dtype)
        if _channels_last(rows) and factor.dim() == rows.dim() - 1:
            return factor.movedim(1, -1).contiguous().movedim(-1, 1)
        return factor


def _channels_last(rows: Tensor) -> bool:
    """Whether the channels of rows (R, N, C, ...) lie next to each other in memory."""
    return rows.dim() > 3 and rows.stride(2) == 1


class Gate(Elementwise):
    """``v = g o u``: a factor shared by all rows, constant almost everywhere.

    ``g`` broadcasts against ``u``. A *step* gate is kept as the tensor that autograd
    saved, and ``g = 1 where values > 0 else 0`` is formed when it is needed.
    """

    def __init__(self, values: Tensor, shape: torch.Size, step: bool = False) -> None:
        self.values = values.detach()
        self.shape = shape
        self.step = step
        #: The share that is open as far as the kind of gate tells, without counting.
        self.expected = 0.5 if step else 1.0

    def factor(self, dtype: torch.dtype) -> Tensor:
        if self.step:
            return (self.values > 0).to(dtype)
        return self.values.to(dtype)

    def pull(self, rows: Tensor) -> Tensor:
        shared = rows[:, :1] if rows.dim() > 2 and rows.stride(1) == 0 else rows
        if self.runs_natively(shared):
            return gate_pool.gate_rows(shared, self.values, positive=self.step)
        return super().pull(rows)

    def summed(self, tangents: Tensor) -> Tensor:
        """Return `push` of tangents (R, N, H), added up over samples, (R, H)."""
        if self.runs_natively(tangents):
            return gate_pool.gated_sum(tangents, self.values, positive=self.step)
        return self.push(tangents).sum(1)

    def overwrite(self, rows: Tensor, up: bool = False) -> Tensor:
        if self.runs_natively(rows):
            return gate_pool.gate_rows(rows, self.values, positive=self.step, out=rows)
        return super().overwrite(rows, up)

    def runs_natively(self, rows: Tensor) -> bool:
        """Whether one kernel for a GPU multiplies these rows.

        They may have one sample, whose rows all samples share.
        """
        shape = self.values.shape
        return (
            native.on_gpu(rows)
            and self.values.dtype == rows.dtype
            and rows.shape[1:] in (shape, (1, *shape[1:]))
            and native.has("gate_rows", rows, self.values)
        )

    def share(self) -> float:
        """Return the share of the gate that is open, that is, not zero."""
        is_open = self.values > 0 if self.step else self.values != 0
        return float(is_open.count_nonzero()) / max(1, is_open.numel())

    def narrow(self, samples: Samples) -> Gate:
        values = samples.of_broadcast(self.values, len(self.shape))
        return Gate(values, self.shape, self.step)

    def describe(self) -> str:
        return "gate"


class Scale(Elementwise):
    """``v = s o u`` where the factor ``s`` may carry gradient to what it was made of.

    ``s`` broadcasts against ``u``. With ``s = sigma'(u)`` of a smooth activation this
    is the second-order term: dP/ds goes to autograd, which multiplies by sigma''.
    """

    def __init__(self, factor: Tensor, shape: torch.Size) -> None:
        self.weights = (factor,)
        self.values = factor.detach()
        self.shape = shape
        self.per_sample_weights = is_per_sample(factor, len(shape))

    def factor(self, dtype: torch.dtype) -> Tensor:
        return self.values

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is not None:
            product = inner(rows, tangents).sum_to_size(self.values.shape)
            total.add(product.to(self.values.dtype))

    def push_adding(
        self, tangents: Tensor, rows: Tensor, sums: Sums, own: bool, spare: bool
    ) -> Tensor:
        (total,) = sums
        if total is not None and self.values.shape == rows.shape[1:]:
            out = tangents if own else workspace.empty_as(tangents)
            last = _channels_last(tangents)
            moved = [t.movedim(2, -1) if last else t for t in (rows, tangents, out)]
            factor = self._laid_out(tangents)
            factor = factor.movedim(1, -1) if last else factor
            if native.has("scale_push", factor, *moved):
                gradient = scale_push(moved[0], moved[1], factor, moved[2])
                total.add(gradient.movedim(-1, 1) if last else gradient)
                return out
        return super().push_adding(tangents, rows, sums, own, spare)

    def narrow(self, samples: Samples) -> Scale:
        narrowed = Scale(samples.of_broadcast(self.values, len(self.shape)), self.shape)
        narrowed.weights = self.weights
        narrowed.per_sample_weights = self.per_sample_weights
        return narrowed

    def describe(self) -> str:
        return "scale"


def inner(rows: Tensor, tangents: Tensor) -> Tensor:
    """Return ``sum_r rows[r] o tangents[r]``; nothing as large as the rows is made."""
    if rows[0].numel() < LONG_ROW:
        return (rows * tangents).sum(0)
    total = rows[0] * tangents[0]
    for row, tangent in zip(rows[1:], tangents[1:], strict=True):
        total.addcmul_(row, tangent)
    return total
