"""Dense products with a matrix that does not depend on the input."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from fastjac.rules.base import Rule, Samples, Sum, Sums, is_marked_identity


class Linear(Rule):
    """``v = scale * u W^T`` for ``u`` of shape (M, in) and ``W`` of shape (out, in)."""

    moves = False

    def __init__(
        self, weight: Tensor, scale: float = 1.0, bias: Tensor | None = None
    ) -> None:
        self.weights, self.biases = (weight,), (bias,)
        self.weight = weight.detach()
        self.scale = scale

    def pull(self, rows: Tensor) -> Tensor:
        if is_marked_identity(rows):
            pulled = self.weight
        elif is_shared(rows):
            pulled = rows[:, 0] @ self.weight
        else:
            return self._scaled(rows @ self.weight)
        return self._scaled(pulled).unsqueeze(1).expand(-1, rows.shape[1], -1)

    def push(self, tangents: Tensor) -> Tensor:
        pushed = self._scaled(tangents @ self.weight.t())
        return add_constant(pushed, self.biases[0], self.ones)

    def bias_gradients(self, rows: Tensor, sums: Sums) -> None:
        add_bias_gradient(rows, self.ones, sums[0])

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is None:
            return
        if is_shared(rows) or is_marked_identity(rows):
            self.add_shared(rows, tangents.sum(1), total)
            return
        rows, tangents = rows.flatten(0, 1), tangents.flatten(0, 1)
        total.add_product(rows.t(), tangents, self.scale)

    def add_shared(self, rows: Tensor, tangents: Tensor, total: Sum) -> None:
        """Add the gradient for rows that samples share and their sum of tangents."""
        if is_marked_identity(rows):
            total.add(self._scaled(tangents))
        else:
            total.add_product(rows[:, 0].t(), tangents, self.scale)

    @property
    def multiplications(self) -> int:
        return self.elements * self.weight.shape[0]

    def scaled(self, factor: Tensor) -> Linear:
        """Return this layer with output c multiplied by ``factor[c]``."""
        with torch.enable_grad():
            weight = self.weights[0] * factor.view(-1, 1)
            bias = scaled_bias(self.biases[0], factor)
        scaled = Linear(weight, self.scale, bias)
        scaled.elements = self.elements
        return scaled

    def describe(self) -> str:
        return "dense, matrix product"

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor if self.scale == 1 else tensor * self.scale


def scaled_bias(bias: Tensor | None, factor: Tensor) -> Tensor | None:
    """Return a bias with entry c multiplied by ``factor[c]``."""
    return None if bias is None else bias * factor.flatten()


def add_constant(pushed: Tensor, bias: Tensor | None, ones: Tensor | None) -> Tensor:
    """Add ``bias * ones`` to tangents (R, n, C, ...), lifted by ``ones`` (n, R)."""
    if bias is None or ones is None:
        return pushed
    lift = ones.t().unsqueeze(2) * bias.detach()
    return pushed.add_(lift.view(*lift.shape, *(1,) * (pushed.dim() - 3)))


def add_bias_gradient(rows: Tensor, ones: Tensor | None, total: Sum | None) -> None:
    """Add the gradient of a bias from rows (R, n, C, ...) at what it is added to."""
    if total is not None and ones is not None:
        rows = rows.sum(tuple(range(3, rows.dim()))) if rows.dim() > 3 else rows
        per_sample = rows.permute(1, 2, 0) @ ones.unsqueeze(2)
        total.add(per_sample.sum(0).squeeze(1))


class MatrixProduct(Rule):
    """``v = u B`` (``side="right"``) or ``v = B u`` (``side="left"``), scaled.

    ``u`` is (M, in) or batched (b, ..., M, in); ``B`` has as many dimensions as ``u``.
    """

    moves = False

    def __init__(self, matrix: Tensor, side: str, scale: float = 1.0) -> None:
        self.weights = (matrix,)
        self.matrix = matrix.detach()
        self.side, self.scale = side, scale
        batched = matrix.dim() > 2
        self.samplewise = batched or side == "right"
        self.per_sample_weights = batched

    def pull(self, rows: Tensor) -> Tensor:
        return self._product(rows, self.matrix.mT)

    def push(self, tangents: Tensor) -> Tensor:
        return self._product(tangents, self.matrix)

    def weight_gradients(self, rows: Tensor, tangents: Tensor, sums: Sums) -> None:
        (total,) = sums
        if total is None:
            return
        if self.side == "right":
            gradient = torch.einsum("r...mi,r...mo->...io", tangents, rows)
        else:
            gradient = torch.einsum("r...im,r...om->...io", rows, tangents)
        total.add(gradient if self.scale == 1 else gradient.mul_(self.scale))

    @property
    def multiplications(self) -> int:
        return self.elements * self.matrix.shape[-1 if self.side == "right" else -2]

    def narrow(self, samples: Samples) -> Rule:
        if self.matrix.dim() == 2:
            return self
        narrowed = copy(self)
        narrowed.matrix = samples.of(self.matrix)
        return narrowed

    def _product(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """Multiply each row's matrices by ``matrix``.

        torch's batched product copies ``matrix`` for every row; where that is the
        larger part, the rows are put side by side instead.
        """
        if self.scale != 1:
            matrix = matrix * self.scale
        if matrix.dim() == 2 or matrix.numel() <= rows[0].numel():
            return rows @ matrix if self.side == "right" else matrix @ rows
        if self.side == "right":
            return torch.einsum("r...mi,...io->r...mo", rows, matrix)
        return torch.einsum("...mi,r...io->r...mo", matrix, rows)

    def describe(self) -> str:
        return "dense, matrix product"


def is_shared(rows: Tensor) -> bool:
    """Whether all samples share one row, held once (stride 0 along dimension 1)."""
    return rows.shape[1] > 1 and rows.stride(1) == 0


def linear_weight(matrix: Tensor) -> Tensor:
    """Return the (out, in) weight whose transpose is ``matrix``.

    ``nn.Linear`` multiplies by a transposed view of its parameter. Where that is the
    case the parameter itself is returned, so that its gradient needs no view.
    """
    node = matrix.grad_fn
    if node is not None and node.name() == "TBackward0":
        parameter = getattr(node.next_functions[0][0], "variable", None)
        if parameter is not None and parameter.data_ptr() == matrix.data_ptr():
            return parameter
    with torch.enable_grad():
        return matrix.t()
