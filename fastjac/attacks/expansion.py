"""The model to first order at a batch: its logits and rows of its Jacobian."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastjac.attacks.arguments import Model, check_logits
from fastjac.forward import Origin, unwrapped
from fastjac.linearization import Linearization
from fastjac.max_pools import native_max_pools
from fastjac.rules.base import Samples
from fastjac.rules.layout import weights_kept
from fastjac.source import FusedRows, Rows, open_rows

_MODE_DEPENDENT = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
)


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Measure `model`: evaluation mode, each module put back, no gradients recorded.

    Warns where the mode makes a difference, that is if dropout or batch
    normalisation was in training mode: the attack sees the model that will be used.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if module.training]
    kinds = {type(m).__name__ for m in training if isinstance(m, _MODE_DEPENDENT)}
    if kinds:
        warnings.warn(
            f"`model` is in training mode with {', '.join(sorted(kinds))}: it is "
            "attacked in evaluation mode and its mode restored afterwards; call "
            "model.eval() to say so yourself",
            UserWarning,
            stacklevel=4,
        )
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(False), torch.no_grad(), weights_kept():
            yield
    finally:
        for module in training:
            module.training = True


class Expansion:
    """Logits `(N, K)` of a model at `x`, from which Jacobian rows can be pulled."""

    def __init__(self, model: Model, x: Tensor, backend: str) -> None:
        with torch.enable_grad(), native_max_pools():
            self._x = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            self._logits = unwrapped(model)(self._x)
        check_logits(self._logits, x)
        self.logits = self._logits.detach()
        self._model, self._backend = model, backend

    def rows(self, seeds: Tensor, keep: Tensor | None = None) -> Tensor:
        """Rows `(n, R, ...)` for `seeds` `(n, R, K)` of the samples `keep` `(n,)`.

        `keep` is in ascending order. Where the linear maps keep samples apart, those
        of the others are dropped before the rows are pulled.
        """
        if keep is not None and len(keep) < len(self._x):
            return self._rows_of(seeds, keep)
        return self._open().pull(seeds).detach()

    def _rows_of(self, seeds: Tensor, keep: Tensor) -> Tensor:
        source = self._open()
        if isinstance(source, FusedRows) and source.linearization.samplewise:
            picked = _picked(source.linearization, keep)
            return FusedRows(picked).pull(seeds).detach()
        x = self._x.detach()[keep]
        return Expansion(self._model, x, self._backend).rows(seeds)

    def _open(self) -> Rows:
        origin = Origin(self._model, self._x)
        return open_rows(self._logits, self._x, self._backend, origin)


class _Picked(Samples):
    """Samples by number instead of a range."""

    def __init__(self, keep: Tensor, total: int) -> None:
        super().__init__(0, len(keep), total)
        self._keep = keep

    def of(self, tensor: Tensor) -> Tensor:
        entries = tensor.shape[0] // self.total
        if entries == 1:
            return tensor.index_select(0, self._keep)
        apart = tensor.unflatten(0, (self.total, entries))
        return apart.index_select(0, self._keep).flatten(0, 1)


def _picked(linearization: Linearization, keep: Tensor) -> Linearization:
    """The linear maps of the samples `keep` alone."""
    total = linearization.samples
    samples = _Picked(keep, total)
    picked = copy(linearization)
    picked.samples = len(keep)
    picked.x_shape = torch.Size([len(keep), *linearization.x_shape[1:]])
    picked.edges = [
        replace(edge, rules=[rule.narrow(samples) for rule in edge.rules])
        for edge in linearization.edges
    ]
    return picked


def class_seeds(classes: Tensor, logits: Tensor) -> Tensor:
    """Seeds `(n, R, K)` that pick the rows of `classes` `(n, R)`."""
    seeds = logits.new_zeros(*classes.shape, logits.shape[1])
    return seeds.scatter_(2, classes.unsqueeze(2), 1.0)
