"""Networks to be: trees of constructors that print as the module they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

ELEMENTS = 500  # of one activation of one sample, so that a case takes milliseconds


@dataclass(frozen=True)
class Spec:
    """A module to be: what makes it and with which arguments."""

    make: Callable[..., nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        args = [a.build() if isinstance(a, Spec) else a for a in self.args]
        return self.make(*args, **self.kwargs)

    def __repr__(self) -> str:
        shown = [repr(a) for a in self.args]
        shown += [f"{name}={value!r}" for name, value in self.kwargs.items()]
        return f"{self.make.__name__}({', '.join(shown)})"


def spec(make: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Spec:
    return Spec(make, args, kwargs)


def weight_norm(module: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(module)


def spectral_norm(module: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(module)


@dataclass(frozen=True)
class Drawn:
    """A network, the shape of its input and the seeds of its weights and input."""

    layers: tuple[Spec, ...]
    shape: tuple[int, ...]  # of one sample
    classes: int
    samples: int
    seed: int
    frozen: frozenset[int]  # indices of parameters that do not require grad

    def build(self, dtype: torch.dtype) -> nn.Sequential:
        """The network, in eval mode but for dropout."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model = nn.Sequential(*[layer.build() for layer in self.layers])
            randomise_statistics(model)
        for module in model.modules():
            module.train("Dropout" in type(module).__name__)
        frozen = {
            weight_of(list(dict(model.named_parameters()))[i]) for i in self.frozen
        }
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(weight_of(name) not in frozen)
        return model.to(dtype)

    def x(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.samples, *self.shape, generator=generator).to(dtype)


def weight_of(parameter: str) -> str:
    """The weight that a parameter is, or that it is an original of."""
    return parameter.partition(".parametrizations.")[0]


def randomise_statistics(model: nn.Module) -> None:
    """Give normalisation layers statistics and affine factors that are not 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias)


def output_shape(layer: Spec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of one sample after the layer; None if it does not fit or grows large."""
    with torch.random.fork_rng(), torch.no_grad():
        try:
            out = layer.build().eval()(torch.zeros(2, *shape))
        except (RuntimeError, ValueError):
            return None
    after = tuple(out.shape[1:])
    # A dilated max pool may look at padding alone: its result is infinite.
    finite = bool(torch.isfinite(out).all())
    fits = out.dim() >= 2 and 0 < out[0].numel() <= ELEMENTS
    return after if fits and finite else None
