"""Projected gradient descent: small gradient steps, kept within eps of the sample."""

import torch
from torch import Tensor

from fastjac.attacks.arguments import (
    Bounds,
    Model,
    Norm,
    check_amount,
    check_classes,
    check_count,
    check_images,
    check_norm,
)
from fastjac.attacks.expansion import Expansion, evaluation_mode
from fastjac.attacks.fgsm import loss_direction
from fastjac.attacks.search import bar, default_chunk


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    eps: float,
    bounds: Bounds | None = None,
    *,
    steps: int = 40,
    step_size: float | None = None,
    norm: Norm = "linf",
    restarts: int = 1,
    random_start: bool = True,
    targeted: bool = False,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    backend: str = "auto",
    progress: bool = False,
) -> Tensor:
    r"""Raise the loss by `steps` steps of steepest ascent, never further than `eps`.

    :math:`x_{t+1} = \Pi(x_t + \alpha\, d(\nabla_x \mathrm{CE}(z(x_t), y)))` with
    :math:`d` the sign for "linf" and the normalised gradient for "l2", and
    :math:`\Pi` the projection on the ball of radius `eps` and then on `bounds` (Madry
    et al. 2018). Without `random_start` this is the iterated fast gradient method
    (Kurakin et al. 2017).

    Args:
        model: module or callable from `(N, ...)` to logits `(N, K)`, K >= 2.
        x: (N, ...) samples, floating.
        y: (N,) classes to get away from; with `targeted`, to reach.
        eps: radius in the units of `x`, >= 0.
        bounds: (low, high) that the result is clamped to, or None.
        steps: number of steps, >= 0.
        step_size: alpha, >= 0; None for 2.5 eps / steps, which can cross the ball.
        norm: "linf" or "l2".
        restarts: independent runs, >= 1. A sample fooled by one keeps that result and
            takes no part in the next; otherwise it keeps the last.
        random_start: begin at a uniformly drawn point of the ball.
        targeted: go towards `y` instead.
        generator: of the random starts, on the device of `x`.
        chunk: samples at a time, None for 128 on a CPU and 1024 on a GPU.
        backend: as in `fastjac.jacobian_penalty`.
        progress: show a bar (needs tqdm).

    Returns:
        (N, ...) perturbed samples.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or `x` outside `bounds`.

    Example:
        >>> import torch
        >>> from fastjac import attacks
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[3.0, 4.0], [-3.0, -4.0]])
        >>> x, y = torch.tensor([[1.0, 1.0]]), torch.tensor([0])
        >>> attacks.pgd(model, x, y, 0.5, norm="l2", random_start=False)
        tensor([[0.7000, 0.6000]])
    """
    check_images(x, bounds)
    check_classes("y", y, x)
    check_amount("eps", eps)
    check_count("steps", steps, 0)
    check_count("restarts", restarts, 1)
    check_norm(norm)
    if chunk is not None:
        check_count("chunk", chunk, 1)
    if step_size is None:
        step_size = 2.5 * eps / max(1, steps)
    check_amount("step_size", step_size)
    ball = Ball(eps, norm, bounds)
    alpha = -step_size if targeted else step_size
    found = x.detach().clone()
    size = chunk or default_chunk(x)
    with evaluation_mode(model), bar(len(x), progress) as shown:
        for part in torch.arange(len(x), device=x.device).split(size):
            left = part
            for _ in range(restarts):
                start = x[left].detach()
                moved = ball.draw(start, generator) if random_start else start.clone()
                for _ in range(steps):
                    direction = loss_direction(model, moved, y[left], norm, backend)
                    moved = ball.project(moved + alpha * direction, start)
                found[left] = moved
                if restarts == 1:
                    break
                same = Expansion(model, moved, backend).logits.argmax(1) == y[left]
                left = left[~same if targeted else same]
                if not len(left):
                    break
            shown.update(len(part))
    return found


class Ball:
    """The points within `eps` of a sample, in a norm, within bounds."""

    def __init__(self, eps: float, norm: Norm, bounds: Bounds | None) -> None:
        self.eps, self.norm, self.bounds = eps, norm, bounds

    def project(self, moved: Tensor, start: Tensor) -> Tensor:
        """`moved` `(n, ...)` brought back to the ball around `start`."""
        shift = moved - start
        if self.norm == "linf":
            shift = shift.clamp(-self.eps, self.eps)
        else:
            size = shift.flatten(1).norm(dim=1)
            shrink = (self.eps / size.clamp_min(1e-12)).clamp_max(1)
            shift = shift * shrink.view(-1, *(1,) * (shift.ndim - 1))
        return self._bound(start + shift)

    def draw(self, start: Tensor, generator: torch.Generator | None) -> Tensor:
        """A point of the ball around each `start` `(n, ...)`, uniformly drawn."""
        if self.norm == "linf":
            shift = torch.empty_like(start).uniform_(-1, 1, generator=generator)
        else:
            shift = torch.empty_like(start).normal_(generator=generator)
            flat = shift.flatten(1)
            radius = torch.empty_like(flat[:, :1]).uniform_(generator=generator)
            radius = radius ** (1 / max(1, flat.shape[1]))
            shift = (flat * radius / flat.norm(dim=1, keepdim=True)).view_as(start)
        return self._bound(start + self.eps * shift)

    def _bound(self, x: Tensor) -> Tensor:
        return x if self.bounds is None else x.clamp(*self.bounds)
