"""Settings of an experiment: network, phases, weights, and what is measured.

The recipes themselves are in `fastjac.paper.presets`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer


@dataclass(frozen=True)
class Phase:
    """A phase of training.

    Attributes:
        steps: optimizer steps.
        batch: images a step.
        lr: learning rate of the first step; it falls along a half cosine to
            ``final`` times it.
        optimizer: "adam" or "rmsprop".
        weight_decay: weight c of c/2 ||W||^2 in the loss, over the weights W of all
            layers but the last, as in the paper's released code.
        final: the last learning rate as a share of the first; 1 for a constant one.
        dropout: whether the network's dropout is on.
        penalised: share of a batch's images, the first ones, that penalties see which
            take several rows an image.
    """

    steps: int
    batch: int
    lr: float
    optimizer: str = "adam"
    weight_decay: float = 0.0
    final: float = 1.0
    dropout: bool = True
    penalised: float = 1.0

    @contextmanager
    def dropping(self, model: nn.Module) -> Iterator[None]:
        """Context with the model's dropout as this phase has it."""
        layers = [m for m in model.modules() if isinstance(m, _DropoutNd)]
        before = [layer.p for layer in layers]
        try:
            for layer in layers:
                layer.p = layer.p if self.dropout else 0.0
            yield
        finally:
            for layer, p in zip(layers, before, strict=True):
                layer.p = p

    def optimizer_of(self, model: nn.Module) -> Callable[..., Optimizer]:
        """A function that makes the phase's optimizer over the model's parameters."""
        weights = [p for p in model.parameters() if p.dim() > 1]
        decayed = {id(p) for p in weights[:-1]}
        makers: dict[str, Callable[..., Optimizer]] = {
            "adam": torch.optim.Adam,
            "rmsprop": torch.optim.RMSprop,
        }

        def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
            given = list(parameters)
            inner = [p for p in given if id(p) in decayed]
            rest = [p for p in given if id(p) not in decayed]
            groups = [
                {"params": inner, "weight_decay": self.weight_decay},
                {"params": rest},
            ]
            # One pass over the weights: a fifth of the time of torch's default here.
            options = {"fused": True} if self.optimizer == "adam" else {}
            optimizer = makers[self.optimizer](groups, lr=self.lr, **options)
            optimizer.register_step_pre_hook(self._set_rate)
            return optimizer

        return make

    def rate(self, done: int) -> float:
        """The learning rate after ``done`` steps.

        Example:
            >>> phase = Phase(steps=100, batch=10, lr=1e-3, final=0.1)
            >>> [round(1e3 * phase.rate(done), 3) for done in (0, 50, 100)]
            [1.0, 0.55, 0.1]
        """
        way = 0.5 * (1 + math.cos(math.pi * min(1.0, done / self.steps)))
        return self.lr * (self.final + (1 - self.final) * way)

    def _set_rate(self, optimizer: Optimizer, *_: Any) -> None:
        """Take the step count from the optimizer, which a checkpoint brings back."""
        states = optimizer.state.values()
        done = max((int(state["step"]) for state in states if state), default=0)
        for group in optimizer.param_groups:
            group["lr"] = self.rate(done)


@dataclass(frozen=True)
class Measure:
    """What is measured on a trained network; sizes in units of pixels in 0..1.

    Attributes:
        images: test images for DeepFool, FGSM and Jacobian norms.
        slow_images: test images for JSMA, PGD and AutoAttack.
        fgsm_eps: l_inf sizes of FGSM (Figure 1).
        jsma_eps: change of a pixel a step of JSMA (Figure 2).
        jsma_steps: steps of JSMA.
        pgd_linf, pgd_l2: sizes of PGD.
        pgd_steps: steps of PGD.
        auto_linf: size of AutoAttack, 0 to leave it out.
    """

    images: int
    slow_images: int
    fgsm_eps: tuple[float, ...]
    jsma_eps: tuple[float, ...]
    jsma_steps: int
    pgd_linf: tuple[float, ...] = ()
    pgd_l2: tuple[float, ...] = ()
    pgd_steps: int = 40
    auto_linf: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that the jobs of a run depend on but data and seed.

    Attributes:
        network: name in `fastjac.models`.
        options: its options.
        train: the regular phase.
        harden: the post-processing phase.
        lams: weight of each penalty by name; with adversarial training another one,
            if there is one under the row's own key, ``"jacobian+adversarial"``.
        share: share of adversarial inputs in rows with adversarial training.
        eps: size of the FGSM step in training.
        lambda_sweep, share_sweep: values of the two ablations.
        equal_cost: by penalty, steps as a multiple of ``harden.steps``.
        measure: what is measured.
        seeds: how many.
        cost_batch: images a step when steps are timed, 0 not to time any.
        groups: names in `fastjac.paper.rows.GROUPS`.
        note: a sentence that the report prints about the recipe.
    """

    network: str
    train: Phase
    harden: Phase
    lams: Mapping[str, float]
    share: float
    eps: float
    measure: Measure
    seeds: int
    options: Mapping[str, Any] = field(default_factory=dict)
    lambda_sweep: tuple[float, ...] = ()
    share_sweep: tuple[float, ...] = ()
    equal_cost: Mapping[str, float] = field(default_factory=dict)
    cost_batch: int = 0
    groups: tuple[str, ...] = ("main",)
    note: str = ""
