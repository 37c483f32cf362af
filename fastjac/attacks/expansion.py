"""The model to first order at a batch: its logits and rows of its Jacobian."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastjac import reference
from fastjac.attacks.arguments import Model, check_logits

_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Put `model` in evaluation mode for a while, each module back as it was.

    Warns where the mode makes a difference, that is if dropout or batch
    normalisation was in training mode: the attack sees the model that will be used.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    kinds = {type(m).__name__ for m in training if isinstance(m, _MODE_DEPENDENT)}
    if kinds:
        warnings.warn(
            f"model is in training mode with {', '.join(sorted(kinds))}: it is "
            "attacked in evaluation mode and its mode restored afterwards; call "
            "model.eval() to say so yourself",
            UserWarning,
            stacklevel=3,
        )
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Expansion:
    """Logits `(N, K)` of a model at `x`, from which Jacobian rows can be pulled."""

    def __init__(self, model: Model, x: Tensor) -> None:
        self._model = model
        with torch.enable_grad():
            self._x = x.detach().requires_grad_()
            self._logits = model(self._x)
        check_logits(self._logits, x)
        self.logits = self._logits.detach()

    def rows(self, seeds: Tensor, keep: Tensor | None = None) -> Tensor:
        """Rows `(n, R, ...)` for `seeds` `(n, R, K)`, for the samples `keep` `(n,)`."""
        if keep is None or len(keep) == len(self._x):
            return reference.pull(self._logits, self._x, seeds).detach()
        return Expansion(self._model, self._x.detach()[keep]).rows(seeds)


def class_seeds(classes: Tensor, logits: Tensor) -> Tensor:
    """Seeds `(n, R, K)` that pick the rows of `classes` `(n, R)`."""
    seeds = logits.new_zeros(*classes.shape, logits.shape[1])
    return seeds.scatter_(2, classes.unsqueeze(2), 1.0)
