"""What the fused code must equal: the definitions, written out with plain autograd.

Nothing here imports fastjac. Loops are over classes and over pairs of classes, in the
order of the formulas, and second derivatives are autograd's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


def rows(logits: Tensor, x: Tensor) -> list[Tensor]:
    """The K rows d z_k / d x, each shaped like x, differentiable."""
    result = []
    for k in range(logits.shape[1]):
        (row,) = torch.autograd.grad(
            logits[:, k].sum(), x, create_graph=True, allow_unused=True
        )
        result.append(torch.zeros_like(x) if row is None else row)
    return result


def per_sample(row: Tensor) -> Tensor:
    """Squared l2 norm of every sample, shape (N,)."""
    return (row * row).flatten(1).sum(1)


def reduce(squared: Tensor, reduction: str) -> Tensor:
    """DESIGN section 6 for (N,) squared norms; the root of zero has gradient zero."""
    if reduction == "none":
        return squared
    if reduction == "mean":
        return squared.mean()
    total = squared.sum()
    if reduction == "sum" or total == 0:
        return total
    return total.sqrt()


def jacobian_squares(
    logits: Tensor, x: Tensor, class_weights: Sequence[float] | None = None
) -> Tensor:
    """sum_k w_k ||d z_k / d x||^2 for every sample."""
    weights = [1.0] * logits.shape[1] if class_weights is None else class_weights
    squares = [
        w * per_sample(row)
        for w, row in zip(weights, rows(logits, x), strict=True)
    ]  # fmt: skip
    return torch.stack(squares).sum(0)


def cross_lipschitz_squares(logits: Tensor, x: Tensor) -> Tensor:
    """sum_j sum_k ||d z_j / d x - d z_k / d x||^2 for every sample (eq. 6)."""
    all_rows = rows(logits, x)
    total = torch.zeros(len(x), dtype=x.dtype)
    for row_j in all_rows:
        for row_k in all_rows:
            total = total + per_sample(row_j - row_k)
    return total


def input_gradient_squares(logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """||d CE(z_i, y_i) / d x_i||^2 for every sample (eq. 5)."""
    loss = F.cross_entropy(logits, y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True, allow_unused=True)
    return per_sample(torch.zeros_like(x) if gradient is None else gradient)


def hoffman(x: Tensor, logits: Tensor, n: int = 1) -> Tensor:
    """The JacobianReg of Hoffman, Roberts and Yaida (2019), algorithm 1.

    J^2 = (1 / n_proj) sum_mu C ||v_mu . J||^2 / B with v_mu uniform on the unit
    sphere of every sample; n = -1 goes through the classes instead. Their loss is half.
    Like their package it draws torch.randn(B, C) in the default dtype.
    """
    batch, classes = logits.shape
    projections = classes if n == -1 else n
    total = torch.zeros((), dtype=x.dtype)
    for index in range(projections):
        if n == -1:
            v = torch.zeros(batch, classes, dtype=x.dtype)
            v[:, index] = 1
        elif classes == 1:
            v = torch.ones(batch, classes, dtype=x.dtype)
        else:
            v = F.normalize(torch.randn(batch, classes), dim=1).to(x.dtype)
        (jv,) = torch.autograd.grad(
            logits.reshape(-1), x, v.reshape(-1), create_graph=True, retain_graph=True
        )
        total = total + classes * jv.norm() ** 2 / (projections * batch)
    return 0.5 * total


def gradients(value: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """d value.sum() / d parameter, zeros where they do not meet; keeps the graph."""
    parameters = list(parameters)
    if not value.requires_grad or not parameters:
        return [torch.zeros_like(p) for p in parameters]
    found = torch.autograd.grad(
        value.sum(), parameters, retain_graph=True, allow_unused=True
    )
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters, found, strict=True)
    ]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def error(got: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """max |got - expected| / max |expected|: relative to the largest entry.

    With ``scale`` given, relative to that. Relative to zero, the absolute error.
    """
    difference = (got.detach().double() - expected.detach().double()).abs().max().item()
    largest = expected.detach().abs().max().item() if scale is None else scale
    return difference / largest if largest > 0 else difference


class _Pieces(TorchDispatchMode):
    """Records which side of each kink the forward pass took."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # In-place operations destroy their input, so it is looked at first.
        name = func.overloadpacket.__name__.rstrip("_")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in ("relu", "leaky_relu", "abs", "threshold"):
            self.taken.append(first.sign())
        elif name in ("hardtanh", "clamp"):
            low, high = args[1:3] if len(args) > 2 else (-1, 1)
            self.taken.append((first > low).int() + (first >= high).int())
        out = func(*args, **(kwargs or {}))
        if name == "amax":
            axes = args[1] if len(args) > 1 else []
            self.taken.append(first == first.amax(axes, keepdim=True))
        elif ("max" in name and isinstance(out, tuple)) or (
            "dropout" in name and isinstance(out, tuple)
        ):
            self.taken.append(out[1].clone())
        return out


def pieces(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The signs, routes and masks of model(x): equal for equal linear pieces."""
    recorder = _Pieces()
    with recorder, torch.no_grad():
        model(x)
    return recorder.taken


def same_piece(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.shape == b.shape and bool((a == b).all())
        for a, b in zip(one, other, strict=True)
    )
