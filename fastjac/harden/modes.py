"""Train and eval mode, put back module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def restored_modes(model: nn.Module) -> Iterator[None]:
    """Context after which every module of ``model`` is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which ``model`` is in eval mode.

    Example:
        >>> layer = nn.Dropout()
        >>> with evaluating(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    with restored_modes(model):
        model.eval()
        yield


@contextmanager
def training(model: nn.Module, *, freeze_batchnorm: bool) -> Iterator[None]:
    """Context in which ``model`` is in train mode, BatchNorm in eval mode if asked."""
    with restored_modes(model):
        model.train()
        for module in model.modules():
            if freeze_batchnorm and isinstance(module, _BatchNorm):
                module.eval()
        yield
