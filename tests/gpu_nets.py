"""Networks small enough for a sanitizer that meet every CUDA kernel, and their step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastjac


def convolutional() -> nn.Module:
    """Gated convolutions that feed each other, overlapping pools, and a head."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.MaxPool2d(3, 2),
        nn.ReLU(),
        nn.Conv2d(6, 3, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def averaged() -> nn.Module:
    """Average pools behind gated convolutions, one of which does not fill the plane."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.AvgPool2d((2, 3)),
        nn.Conv2d(4, 5, 2),
        nn.ReLU(),
        nn.AvgPool2d(1),
        nn.Flatten(),
        nn.Linear(15, 4),
    )


def step(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Forward, cross-entropy, penalty and backward, into the gradients."""
    penalty, logits = fastjac.jacobian_penalty(
        model, x, backend="fused", return_logits=True
    )
    loss = F.cross_entropy(logits, y) + 0.1 * penalty
    loss.backward()
    return loss.detach()


def main() -> None:
    """What a sanitizer runs: penalties and steps of attacks in both types."""
    for dtype in (torch.float32, torch.float64):
        model = convolutional().to("cuda", dtype)
        x = torch.rand(3, 1, 10, 10, dtype=dtype, device="cuda")
        y = torch.randint(4, (3,), device="cuda")
        step(model, x, y)
        fastjac.attacks.deepfool(model, x, steps=2)
        fastjac.attacks.jsma(model, x, 1, steps=2)
        step(averaged().to("cuda", dtype), x, y)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        step(convolutional().cuda(), x.float(), y)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
