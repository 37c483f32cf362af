"""The fast gradient method: one step of a given size up the cross-entropy."""

import torch
from torch import Tensor

from fastjac import checks
from fastjac.attacks.arguments import (
    Bounds,
    Model,
    Norm,
    check_amount,
    check_classes,
    check_count,
    check_images,
    check_norm,
    check_range,
)
from fastjac.attacks.expansion import Expansion, evaluation_mode
from fastjac.attacks.search import default_chunk


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    bounds: Bounds | None = None,
    *,
    norm: Norm = "linf",
    targeted: bool = False,
    chunk: int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Move each sample by `eps` in the direction that raises its loss the fastest.

    :math:`x + \epsilon\,\mathrm{sign}(\nabla_x \mathrm{CE}(z(x), y))` for "linf"
    (Goodfellow, Shlens, Szegedy 2015), :math:`x + \epsilon\,g / \|g\|_2` for "l2".

    The gradient is taken up to a positive factor from the seed
    `softmax(logits without class y) - onehot(y)`, so it does not vanish where the model
    is so sure of `y` that the loss rounds to zero.

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, K >= 2.
        x: (N, ...) samples, floating.
        y: (N,) classes to get away from; with `targeted`, to approach.
        eps: size of the step in the units of `x`, >= 0.
        bounds: (low, high) that the result is clamped to, or None.
        norm: "linf" or "l2".
        targeted: go towards `y` instead.
        chunk: samples at a time, None for 128 on a CPU and 1024 on a GPU.
        backend: as in `fastjac.jacobian_penalty`.

    Returns:
        (N, ...) perturbed samples. Where the gradient is zero, the sample itself.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or `x` outside `bounds`.

    Example:
        >>> import torch
        >>> from fastjac import attacks
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])
        >>> attacks.fgsm(model, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), 0.1)
        tensor([[0.4000, 0.6000]])
    """
    check_images(x, bounds)
    check_classes("y", y, x)
    check_amount("eps", eps)
    check_norm(norm)
    if chunk is not None:
        check_count("chunk", chunk, 1)
    with evaluation_mode(model):
        moved = [
            part
            + (-eps if targeted else eps)
            * loss_direction(model, part, classes, norm, backend)
            for part, classes in zip(
                *(t.detach().split(chunk or default_chunk(x)) for t in (x, y)),
                strict=True,
            )
        ]
    found = torch.cat(moved)
    return found if bounds is None else found.clamp_(*bounds)


def loss_direction(
    model: Model, x: Tensor, y: Tensor, norm: Norm, backend: str
) -> Tensor:
    """Steepest ascent `(n, ...)` of the cross-entropy at `x`, of norm 1 (or zero)."""
    expansion = Expansion(model, x, backend)
    checks.check_finite(expansion.logits, x)
    check_range("y", y, expansion.logits.shape[1])
    gradient = expansion.rows(loss_seeds(expansion.logits, y)).squeeze(1)
    return steepest(gradient, norm)


def loss_seeds(logits: Tensor, y: Tensor) -> Tensor:
    """Seeds `(n, 1, K)`: the gradient of the cross-entropy over `1 - softmax_y`."""
    at = y.long().unsqueeze(1)
    others = logits.scatter(1, at, -torch.inf).softmax(1)
    return others.scatter_(1, at, -1.0).unsqueeze(1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of `gradient` `(n, ...)` of norm 1, zero where it is zero."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    # Scaling by the largest entry first keeps the squares of tiny entries.
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(
        torch.finfo(flat.dtype).tiny
    )
    size = flat.norm(dim=1, keepdim=True)
    return torch.where(size > 0, flat / size, flat).view_as(gradient)
