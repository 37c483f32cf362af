"""Networks that people train, from their papers, of full depth or less and narrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution without bias that keeps the size, and its batch norm."""
    padding = kernel // 2
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Basic(nn.Module):
    """The block of ResNet-18 and -34 (He et al., 2016)."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, activation: Activation
    ) -> None:
        super().__init__()
        self.activation = activation
        self.first = conv_norm(inputs, width, 3, stride)
        self.second = conv_norm(width, width, 3)
        self.shortcut = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.activation(self.first(x)))
        return self.activation(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """The block of ResNet-50, its stride at the 3x3 convolution as in torchvision."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, activation: Activation
    ) -> None:
        super().__init__()
        self.activation = activation
        self.reduce = conv_norm(inputs, width, 1)
        self.conv = conv_norm(width, width, 3, stride)
        self.expand = conv_norm(width, 4 * width, 1)
        self.shortcut = shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.reduce(x))
        out = self.activation(self.conv(out))
        out = self.expand(out)
        out += self.shortcut(x)
        return self.activation(out)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return conv_norm(inputs, outputs, 1, stride)


def resnet(
    block: type[Basic] | type[Bottleneck],
    depths: Sequence[int],
    width: int,
    classes: int,
    activation: Activation = F.relu,
) -> nn.Module:
    """Stem of 7x7 with stride and max pool, four stages, the mean, a linear layer."""
    layers: list[nn.Module] = [
        *conv_norm(3, width, 7, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage > 0 and index == 0 else 1
            layers.append(block(inputs, width << stage, stride, activation))
            inputs = (width << stage) * block.expansion
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers, *head)


class WideBlock(nn.Module):
    """Normalised and gated before each convolution (Zagoruyko, Komodakis, 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first_norm = nn.BatchNorm2d(inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(0.3)
        self.shortcut = None
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.relu(self.first_norm(x), inplace=self.shortcut is not None)
        out = self.dropout(F.relu(self.second_norm(self.first(gated))))
        return self.second(out) + (self.shortcut(gated) if self.shortcut else x)


def wide_resnet(depth: int, widen: float, classes: int) -> nn.Module:
    """WRN-depth-widen: three groups of (depth - 4) / 6 blocks."""
    widths = [16, *(round(16 * widen) << group for group in range(3))]
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    for group, (inputs, outputs) in enumerate(pairwise(widths)):
        for index in range((depth - 4) // 6):
            first = index == 0
            stride = 2 if group > 0 and first else 1
            layers.append(WideBlock(inputs if first else outputs, outputs, stride))
    layers += [nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers, *head)


def vgg16_bn(divisor: int, classes: int) -> nn.Module:
    """Configuration D (Simonyan and Zisserman, 2015) with batch norm."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage, repeats in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(repeats):
            outputs = stage // divisor
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    hidden = 4096 // divisor
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    layers += [nn.Linear(4 * inputs, hidden), nn.ReLU(True), nn.Dropout()]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


class DenseLayer(nn.Module):
    """A bottleneck whose output joins all that came before (Huang et al., 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.branch(torch.cat(features, 1))


class DenseBlock(nn.Module):
    def __init__(self, inputs: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseLayer(inputs + index * growth, growth) for index in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return torch.cat(features, 1)


def densenet(depths: Sequence[int], growth: int, classes: int) -> nn.Module:
    """Dense blocks; between them half the channels and half the size."""
    width = 2 * growth
    layers: list[nn.Module] = [
        *conv_norm(3, width, 7, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    for index, depth in enumerate(depths):
        layers.append(DenseBlock(width, growth, depth))
        width += depth * growth
        if index + 1 < len(depths):
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))


class Inverted(nn.Module):
    """Expand, filter each channel, project (Sandler et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [*conv_norm(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*conv_norm(hidden, hidden, 3, stride, groups=hidden)]
        layers += [nn.ReLU6(inplace=True), *conv_norm(hidden, outputs, 1)]
        self.branch = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


#: Expansion, channels, repeats and stride of the stages of MobileNet-V2.
INVERTED = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenet_v2(divisor: int, classes: int) -> nn.Module:
    inputs = 32 // divisor
    layers: list[nn.Module] = [*conv_norm(3, inputs, 3, 2), nn.ReLU6(inplace=True)]
    for expand, channels, repeats, stride in INVERTED:
        for index in range(repeats):
            outputs = channels // divisor
            step = stride if index == 0 else 1
            layers.append(Inverted(inputs, outputs, step, expand))
            inputs = outputs
    last = 1280 // divisor
    layers += [*conv_norm(inputs, last, 1), nn.ReLU6(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, *head, nn.Linear(last, classes))


class Inception(nn.Module):
    """Branches of several kernels side by side (Szegedy et al., 2015)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        unit = partial(self._unit)
        self.branches = nn.ModuleList(
            [
                unit(inputs, width, 1),
                nn.Sequential(unit(inputs, width, 1), unit(width, 2 * width, 3)),
                nn.Sequential(unit(inputs, width, 1), unit(width, width, 5)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(inputs, width, 1)),
            ]
        )

    @staticmethod
    def _unit(inputs: int, outputs: int, kernel: int) -> nn.Module:
        return nn.Sequential(*conv_norm(inputs, outputs, kernel), nn.ReLU(True))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def inception(width: int, classes: int) -> nn.Module:
    layers: list[nn.Module] = [*conv_norm(3, width, 3, 2), nn.ReLU(inplace=True)]
    layers += [Inception(width, width), nn.MaxPool2d(3, 2), Inception(5 * width, width)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5 * width, classes)]
    return nn.Sequential(*layers, *head)


class ExcitedBlock(nn.Module):
    """A residual block that weighs its channels by their means (Hu et al., 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = conv_norm(width, width, 3)
        self.second = conv_norm(width, width, 3)
        self.squeeze = nn.Linear(width, width // 2)
        self.excite = nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(F.relu(self.first(x)))
        weights = self.excite(F.relu(self.squeeze(out.mean((2, 3))))).sigmoid()
        return F.relu(x + out * weights[:, :, None, None])


def squeeze_excite(width: int, classes: int) -> nn.Module:
    layers = [*conv_norm(3, width, 3, 2), nn.ReLU(True), ExcitedBlock(width)]
    layers += [nn.MaxPool2d(2), ExcitedBlock(width), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, classes))


class SelfAttention(nn.Module):
    """Queries, keys and values of all heads by one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inwards = nn.Linear(width, 3 * width)
        self.outwards = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        split = self.inwards(x).reshape(samples, tokens, 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(query, key, value)
        return self.outwards(out.transpose(1, 2).reshape(samples, tokens, width))


class EncoderBlock(nn.Module):
    """Attention and a GELU network, each behind its layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads))
        self.network = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.network(x)


class VisionTransformer(nn.Module):
    """Patches as tokens, a class token, positions (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, depth: int, size: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // 8) ** 2, width))
        self.blocks = nn.Sequential(*[EncoderBlock(width, 2) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        tokens = self.blocks(tokens + self.positions)
        return self.head(self.norm(tokens)[:, 0])


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, layer norm, GELU network, layer scale (Liu et al., 2022).

    In training a branch is dropped for whole samples (stochastic depth).
    """

    def __init__(self, width: int, dropped: float) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen, self.narrow = (
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.filter(x).permute(0, 2, 3, 1))
        out = self.scale * self.narrow(F.gelu(self.widen(out)))
        return x + self._depth(out.permute(0, 3, 1, 2))

    def _depth(self, branch: Tensor) -> Tensor:
        if not self.training:
            return branch
        kept = branch.new_empty(len(branch), 1, 1, 1).bernoulli_(1 - self.dropped)
        return branch * kept.div_(1 - self.dropped)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext(width: int, classes: int) -> nn.Module:
    """Two stages: a stem of 4x4, and a 2x2 convolution behind a norm between them."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4),
        ChannelNorm(width),
        ConvNextBlock(width, 0.1),
        ChannelNorm(width),
        nn.Conv2d(width, 2 * width, 2, 2),
        ConvNextBlock(2 * width, 0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(2 * width),
        nn.Linear(2 * width, classes),
    )


#: name: (constructor from the number of classes, side of the square input)
ZOO: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "resnet18": (lambda k: resnet(Basic, (2, 2, 2, 2), 6, k), 32),
    "resnet18 gelu": (lambda k: resnet(Basic, (2, 2, 2, 2), 6, k, F.gelu), 32),
    "resnet50": (lambda k: resnet(Bottleneck, (3, 4, 6, 3), 4, k), 32),
    "wrn-16-2/3": (lambda k: wide_resnet(16, 2 / 3, k), 16),
    "vgg16-bn": (lambda k: vgg16_bn(16, k), 32),
    "densenet121": (lambda k: densenet((6, 12, 24, 16), 4, k), 32),
    "mobilenet-v2": (lambda k: mobilenet_v2(4, k), 32),
    "inception": (lambda k: inception(6, k), 16),
    "squeeze-excite": (lambda k: squeeze_excite(6, k), 16),
    "vit": (lambda k: VisionTransformer(12, 2, 16, k), 16),
    "convnext": (lambda k: convnext(6, k), 16),
}
