"""The loss of one step: cross-entropy, a penalty, and adversarial inputs if asked.

    loss = CE(z(x'), y) + lam * penalty(x')

where x' is the batch with a share of its inputs replaced by FGSM ones. Cross-entropy
and penalty read the same logits of one forward, with one dropout mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastjac import parallel, penalties
from fastjac.attacks.fgsm import fgsm
from fastjac.harden.modes import evaluating
from fastjac.regularized import regularized_loss

Penalty = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(model, x, y) -> (penalty, logits)``; both of one forward."""


def _jacobian(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    return penalties.jacobian_penalty(model, x, return_logits=True, **options)


def _cross_lipschitz(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    return penalties.cross_lipschitz_penalty(model, x, return_logits=True, **options)


def _input_gradient(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Any:
    return penalties.input_gradient_penalty(model, x, y, return_logits=True, **options)


PENALTIES: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "jacobian": _jacobian,
    "cross-lipschitz": _cross_lipschitz,
    "input-gradient": _input_gradient,
}
"""The penalties that :func:`fastjac.harden` knows by name."""


@dataclass(frozen=True)
class Terms:
    """The loss of a batch and what it is made of; ``logits`` is (N, K)."""

    loss: Tensor
    cross_entropy: Tensor
    penalty: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Objective:
    """What a training step minimises.

    Args:
        penalty: a name in :data:`PENALTIES`, a function ``(model, x, y) -> (penalty,
            logits)`` whose penalty is a scalar, or None for cross-entropy alone.
        lam: weight of the penalty, at least 0.
        options: keywords for the named penalty, such as ``{"projections": 1}``.
        adversarial: share of the batch's inputs, 0 to 1, that FGSM perturbs.
        eps: size of the FGSM step, in units of x.
        bounds: range that perturbed inputs are clipped to.
    """

    penalty: str | Penalty | None = None
    lam: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)
    adversarial: float = 0.0
    eps: float = 0.1
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.penalty, str) and self.penalty not in PENALTIES:
            raise ValueError(
                f"penalty (={self.penalty!r}) must be one of"
                f" {', '.join(map(repr, PENALTIES))}, a function"
                " (model, x, y) -> (penalty, logits), or None"
            )
        if self.options and not isinstance(self.penalty, str):
            raise ValueError(
                f"penalty_options (={dict(self.options)!r}) are for a penalty given by"
                f" name, got penalty={self.penalty!r}"
            )
        if not self.lam >= 0:
            raise ValueError(f"lam (={self.lam}) must be at least 0")
        if not 0 <= self.adversarial <= 1:
            raise ValueError(
                f"adversarial (={self.adversarial}) is the share of inputs to perturb"
                " and must lie in 0..1"
            )
        if self.adversarial and not self.eps > 0:
            raise ValueError(f"eps (={self.eps}) must be positive, in units of x")

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values: what a resumed run must agree on."""
        name = self.penalty
        if name is not None and not isinstance(name, str):
            name = getattr(name, "__qualname__", type(name).__name__)
        options = {k: v for k, v in self.options.items() if k != "generator"}
        perturbed = {"eps": self.eps, "bounds": repr(self.bounds)}
        return {
            "penalty": name,
            "lam": self.lam if name else 0.0,
            "penalty_options": repr(sorted(options.items())),
            "adversarial": self.adversarial,
            **(perturbed if self.adversarial else {}),
        }

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, group: Any = None
    ) -> Terms:
        """Return the terms for inputs ``x`` (N, ...) and labels ``y`` (N,).

        With a process ``group`` these are the share of this process; loss,
        cross-entropy and penalty are those of the whole batch, with gradients to be
        averaged. Of a penalty given as a function they take the mean over processes.
        """
        x = self.perturbed(model, x, y)
        if self.penalty in ("jacobian", "cross-lipschitz") and group is None:
            step = regularized_loss(
                model, x, y, self.lam, penalty=self.penalty, **self.options
            )
            return Terms(step.total, step.loss, step.penalty, step.logits)
        if self.penalty is None:
            logits = model(x)
            penalty = logits.new_zeros(())
        elif isinstance(self.penalty, str):
            penalty, logits = PENALTIES[self.penalty](
                model, x, y, process_group=group, **self.options
            )
        else:
            penalty, logits = self.penalty(model, x, y)
            penalty = _mean(penalty, 1, group)
        cross_entropy = _mean(F.cross_entropy(logits, y), len(x), group)
        loss = cross_entropy
        if self.penalty is not None:
            loss = cross_entropy + self.lam * penalty
        return Terms(loss, cross_entropy, penalty, logits)

    def perturbed(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x`` with the asked share of its inputs replaced by FGSM ones."""
        count = round(self.adversarial * len(x))
        if count == 0:
            return x
        chosen = torch.randperm(len(x))[:count].to(x.device)
        if isinstance(model, DistributedDataParallel):
            model = model.module
        with evaluating(model):
            attacked = fgsm(model, x[chosen], y[chosen], self.eps, bounds=self.bounds)
        return x.index_copy(0, chosen, attacked.detach().to(x.dtype))


def _mean(value: Tensor, count: int, group: Any) -> Tensor:
    """Return the mean over processes, each with the weight of its count."""
    if group is None:
        return value
    total, counts = parallel.sums(value * count, count, group)
    return total / counts
