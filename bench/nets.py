"""The networks of the benchmarks, as data: how each is made and with which batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastjac import models


@dataclass(frozen=True)
class Net:
    """A network and the batch sizes that it is timed with."""

    make: Callable[[int], nn.Module]  # from the number of classes
    shape: tuple[int, ...]
    samples: tuple[int, ...]

    def build(self, classes: int = 10, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network in eval mode, so that every contestant sees the same gates."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make(classes).to(dtype).eval()

    def batch(self, samples: int, classes: int = 10) -> tuple[Tensor, Tensor]:
        """Random images in [0, 1] and labels, the same on every call."""
        generator = torch.Generator().manual_seed(1)
        x = torch.rand(samples, *self.shape, generator=generator)
        return x, torch.randint(classes, (samples,), generator=generator)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., 2016)."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: nn.Module
    ) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.first_norm(self.first(x)))
        out = self.second_norm(self.second(out))
        return self.activation(out + self.shortcut(x))


def resnet18(
    classes: int, width: int = 32, activation: nn.Module | None = None
) -> nn.Module:
    """ResNet-18 with the CIFAR stem: a 3x3 convolution, and no pool behind it."""
    activation = activation or nn.ReLU(inplace=True)
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        activation,
    ]
    channels = width
    for stage in range(4):
        out = width << stage
        layers.append(BasicBlock(channels, out, 1 + (stage > 0), activation))
        layers.append(BasicBlock(out, out, 1, activation))
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def vgg11(classes: int, divisor: int = 2) -> nn.Module:
    """VGG-11 for 3x32x32 with all widths divided, and one linear layer at the end."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width // divisor, 3, padding=1), nn.ReLU(True)]
        channels = width // divisor
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))


def smooth_convnet(classes: int, width: int = 32) -> nn.Module:
    """Four 3x3 convolutions with GELU, two of them with a stride."""
    layers: list[nn.Module] = []
    channels = 3
    for out, stride in ((width, 1), (2 * width, 2), (2 * width, 1), (4 * width, 2)):
        layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.GELU()]
        channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


def paper_net(name: str, **options: object) -> Callable[[int], nn.Module]:
    return lambda classes: models.create(name, classes=classes, **options)


NETS: dict[str, Net] = {
    "digits": Net(paper_net("digits"), (1, 8, 8), (32,)),
    "mnist": Net(paper_net("mnist"), (1, 28, 28), (64, 500)),
    "cifar": Net(paper_net("cifar", widths=(32, 64, 128, 256)), (3, 32, 32), (32, 128)),
    "lenet5": Net(paper_net("lenet5"), (1, 28, 28), (64,)),
    "mlp": Net(paper_net("mlp"), (1, 28, 28), (64,)),
    "vgg11": Net(vgg11, (3, 32, 32), (32,)),
    "resnet18": Net(resnet18, (3, 32, 32), (32,)),
    "resnet18-gelu": Net(
        lambda classes: resnet18(classes, activation=nn.GELU()), (3, 32, 32), (32,)
    ),
    "convnet-gelu": Net(smooth_convnet, (3, 32, 32), (32,)),
    "resnet18 of full width": Net(lambda k: resnet18(k, 64), (3, 32, 32), (128,)),
}
