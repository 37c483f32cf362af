"""Exact input-Jacobian penalties for PyTorch classifiers, at the price of an estimate.

loss = F.cross_entropy(logits, y) + lam * fastjac.jacobian_penalty(model, x)
"""

from fastjac import attacks, data, models, robustness
from fastjac._version import __version__
from fastjac.budget import memory_budget
from fastjac.build import build_info
from fastjac.differentiable import pull
from fastjac.explain import explain
from fastjac.harden import harden, train
from fastjac.jacobian import jacobian, jacobian_norm, spectral_norm
from fastjac.linearize import linearize
from fastjac.penalties import (
    cross_lipschitz_penalty,
    input_gradient_penalty,
    jacobian_penalty,
    penalty_from_graph,
)
from fastjac.regularized import RegularizedLoss, regularized_loss
from fastjac.regularizer import JacobianReg

__all__ = [
    "JacobianReg",
    "RegularizedLoss",
    "__version__",
    "attacks",
    "build_info",
    "cross_lipschitz_penalty",
    "data",
    "explain",
    "harden",
    "input_gradient_penalty",
    "jacobian",
    "jacobian_norm",
    "jacobian_penalty",
    "linearize",
    "memory_budget",
    "models",
    "penalty_from_graph",
    "pull",
    "regularized_loss",
    "robustness",
    "spectral_norm",
    "train",
]
