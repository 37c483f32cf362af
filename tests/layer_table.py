"""Every layer that runs fused, one entry each: how it is made and its input shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from layers import (
    SHAPE_OPERATIONS,
    Absolute,
    Concatenate,
    Constant,
    Divide,
    Maxout,
    Normalise,
    Reduce,
    Residual,
    Scale,
    Shape,
    Siamese,
    Split,
    SqueezeExcite,
    Stack,
    Twice,
)
from specs import randomise_statistics
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class Function(nn.Module):
    """A module from a function of x and of its own parameters."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...]):
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList(torch.rand(shape) + 0.2 for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.tensors)


class First(nn.Module):
    """The first of the results of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class Halved(nn.Module):
    """A parametrization: the weight is computed as half of another."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def parametrized(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Halved())
    return module


def of(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable:
    return lambda: Function(function, *shapes)


def conv(dims: int, *args, **kwargs) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, f"Conv{dims}d")(*args, **kwargs)


def transposed(dims: int, *args, **kwargs) -> Callable[[], nn.Module]:
    return lambda: getattr(nn, f"ConvTranspose{dims}d")(*args, **kwargs)


def batch_norm(shape: tuple[int, ...], affine: bool) -> nn.Module:
    dims = len(shape) - 1
    norm = getattr(nn, f"BatchNorm{max(dims, 1)}d")(shape[0], affine=affine)
    randomise_statistics(norm)
    return norm.eval()


def write_slice(x: Tensor) -> Tensor:
    out = 2 * x
    out[:, 1] = x[:, 0] - x[:, 2]
    return out


def relu_on_slice(x: Tensor) -> Tensor:
    out = 2 * x
    out[:, 1:3].relu_()
    return out


def curved(layer: nn.Module) -> nn.Module:
    """The layer behind a tanh.

    Otherwise a layer that ignores shifts makes the gradient of the bias before it zero,
    by cancellation that leaves rounding only.
    """
    return nn.Sequential(nn.Tanh(), layer)


def learnt(module: nn.Module) -> nn.Module:
    """The module with scales and shifts that are not 1 and 0."""
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1.5, 1.5)
    return module


def channel_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """Layer norm over channels, as ConvNeXt writes it."""
    centred = x - x.mean(1, keepdim=True)
    variance = centred.pow(2).mean(1, keepdim=True)
    return gamma * (centred / torch.sqrt(variance + 1e-6))


def written_attention(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (x @ q) @ (x @ k).mT / 2
    return scores.softmax(-1) @ (x @ v)


LINE, IMAGE, VOLUME = (4, 9), (4, 7, 6), (4, 4, 5, 3)
SHAPES = {1: LINE, 2: IMAGE, 3: VOLUME}

# name: (the layer under test, shape of one sample at its input)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 5), (12,)),
    "linear without bias": (lambda: nn.Linear(12, 5, bias=False), (12,)),
    "linear on the last axis": (lambda: nn.Linear(9, 5), LINE),
    "linear on the last axis without bias": (lambda: nn.Linear(9, 5, False), LINE),
    "linear on the last axis of an image": (lambda: nn.Linear(6, 5), IMAGE),
    "linear by matmul": (of(lambda x, w: x @ w, (12, 5)), (12,)),
    "linear by F.linear": (of(lambda x, w, b: F.linear(x, w, b), (5, 12), (5,)), (12,)),
    "linear by addmm": (
        of(lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=0.5), (12, 5), (5,)),
        (12,),
    ),
    "linear by einsum": (
        of(lambda x, w: torch.einsum("nd,dk->nk", x, w), (12, 5)),
        (12,),
    ),
    "matrix product from the left": (of(lambda x, w: w @ x, (5, 4)), LINE),
    "batched matrix product": (
        of(lambda x, w: torch.bmm(x, w.expand(len(x), -1, -1)), (1, 9, 5)),
        LINE,
    ),
    "matrix times vector": (of(lambda x, w: (x @ w).unsqueeze(1), (12,)), (12,)),
    "flatten in the linear": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 7)),
        LINE,
    ),
    **{
        f"conv{d}d {name}": (conv(d, 4, *args, **kwargs), SHAPES[d])
        for d in (1, 2, 3)
        for name, args, kwargs in [
            ("plain", (6, 3), {}),
            ("one by one", (6, 1), {}),
            ("without bias", (5, 2), {"bias": False}),
            ("one channel out", (1, 3), {"padding": 1}),
            ("twenty channels out", (20, 3), {"padding": 1}),
            ("stride", (6, 3), {"stride": 2}),
            ("stride larger than the kernel", (6, 2), {"stride": 3}),
            ("padding", (6, 3), {"padding": 2}),
            ("dilation", (6, 2), {"dilation": 2}),
            ("groups", (6, 3), {"groups": 2}),
            ("depthwise", (8, 3), {"groups": 4}),
            ("same padding", (6, 3), {"padding": "same"}),
            ("same padding, even kernel", (6, 2), {"padding": "same"}),
            ("reflect", (6, 3), {"padding": 1, "padding_mode": "reflect"}),
            ("replicate", (6, 3), {"padding": 1, "padding_mode": "replicate"}),
            ("circular", (6, 3), {"padding": 1, "padding_mode": "circular"}),
        ]
    },
    "conv2d uneven in everything": (
        conv(2, 4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(1, 2)),
        IMAGE,
    ),
    **{
        f"transposed conv{d}d {name}": (transposed(d, 4, *args, **kwargs), SHAPES[d])
        for d in (1, 2, 3)
        for name, args, kwargs in [
            ("plain", (6, 3), {}),
            ("stride", (6, 3), {"stride": 2, "output_padding": 1}),
            ("padding", (6, 3), {"padding": 1, "dilation": 2}),
            ("groups", (6, 2), {"groups": 2, "bias": False}),
        ]
    },
    "unbatched convolution of each sample": (
        of(lambda x, w: torch.stack([F.conv1d(s, w) for s in x]), (6, 4, 3)),
        LINE,
    ),
    "relu": (nn.ReLU, IMAGE),
    "relu in place": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)),
        IMAGE,
    ),
    "functional relu": (of(lambda x: F.relu(x)), IMAGE),
    "clamp": (of(lambda x: x.clamp(-0.3, 0.5)), IMAGE),
    "clamp at zero": (of(lambda x: x.clamp(min=0)), IMAGE),
    "leaky relu": (lambda: nn.LeakyReLU(0.2), IMAGE),
    "leaky relu in place": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.LeakyReLU(0.2, inplace=True)),
        IMAGE,
    ),
    "prelu": (nn.PReLU, IMAGE),
    "prelu with a slope a channel": (lambda: nn.PReLU(4), IMAGE),
    "relu6": (nn.ReLU6, IMAGE),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.3), IMAGE),
    "hardtanh in place": (
        lambda: nn.Sequential(nn.Linear(9, 9), nn.Hardtanh(-0.5, 0.3, inplace=True)),
        LINE,
    ),
    "threshold": (lambda: nn.Threshold(0.1, 0.0), IMAGE),
    "softshrink": (lambda: nn.Softshrink(0.3), IMAGE),
    "hardshrink": (lambda: nn.Hardshrink(0.3), IMAGE),
    "abs": (Absolute, IMAGE),
    "maximum of two": (of(lambda x: torch.maximum(x, 0.5 * x - 0.1)), IMAGE),
    "minimum of two": (of(lambda x: torch.minimum(x, 0.5 * x - 0.1)), IMAGE),
    "where": (of(lambda x: torch.where(x > 0.2, x, 0.1 * x)), IMAGE),
    "maxout by max": (lambda: Maxout(2, "max"), IMAGE),
    "maxout by amax": (lambda: Maxout(2, "amax"), IMAGE),
    "amax over two axes": (of(lambda x: x.amax((2, 3))), IMAGE),
    "max over the last axis": (of(lambda x: x.max(-1).values), IMAGE),
    "min over the last axis": (of(lambda x: x.min(-1, keepdim=True).values), IMAGE),
    "ties of amax": (of(lambda x: x.relu().amax(-1)), (4, 3, 2)),
    "dropout": (lambda: nn.Dropout(0.4), IMAGE),
    "dropout2d": (lambda: nn.Dropout2d(0.4), IMAGE),
    "dropout with nothing dropped": (lambda: nn.Dropout(0.0), IMAGE),
    "dropout in eval mode": (lambda: nn.Dropout(0.4).eval(), IMAGE),
    **{
        f"max pool{d}d {name}": (
            lambda d=d, kw=kw: getattr(nn, f"MaxPool{d}d")(**kw),
            SHAPES[d],
        )
        for d in (1, 2, 3)
        for name, kw in [
            ("plain", {"kernel_size": 2}),
            ("overlapping", {"kernel_size": 3, "stride": 1}),
            ("gaps", {"kernel_size": 1, "stride": 2}),
            ("padded", {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("dilated", {"kernel_size": 2, "stride": 1, "dilation": 2}),
            ("ceil mode", {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
        ]
    },
    "max pool that takes channels for rows": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        (3, 10),
    ),
    "max pool that takes channels for depth": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool3d(2)),
        IMAGE,
    ),
    "max pool after relu": (lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), IMAGE),
    "relu after max pool": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), IMAGE),
    "max pool with indices": (
        lambda: Function(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]),
        IMAGE,
    ),
    **{
        f"avg pool{d}d {name}": (
            lambda d=d, kw=kw: getattr(nn, f"AvgPool{d}d")(**kw),
            SHAPES[d],
        )
        for d in (1, 2, 3)
        for name, kw in [
            ("plain", {"kernel_size": 2}),
            ("overlapping", {"kernel_size": 3, "stride": 1}),
            ("padded", {"kernel_size": 3, "stride": 2, "padding": 1}),
            ("ceil mode", {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
            (
                "padding not counted",
                {"kernel_size": 3, "padding": 1, "count_include_pad": False},
            ),
        ]
    },
    "avg pool with its own divisor": (
        lambda: nn.AvgPool2d(2, divisor_override=3),
        IMAGE,
    ),
    **{
        f"adaptive {kind.lower()} pool{d}d to {size}": (
            lambda d=d, kind=kind, size=size: getattr(nn, f"Adaptive{kind}Pool{d}d")(
                size
            ),
            SHAPES[d],
        )
        for d in (1, 2, 3)
        for kind in ("Avg", "Max")
        for size in (1, 2, 4)
    },
    "mean over space": (lambda: Reduce("mean", (2, 3)), IMAGE),
    "mean keeping dims": (lambda: Reduce("mean", (2, 3), True), IMAGE),
    "mean over channels": (lambda: Reduce("mean", (1,)), IMAGE),
    "sum over the last axis": (lambda: Reduce("sum", (-1,)), IMAGE),
    "sum over negative axes": (lambda: Reduce("sum", (-1, -3)), IMAGE),
    **{
        f"batch norm of {len(shape) - 1} axes, affine={affine}": (
            lambda shape=shape, affine=affine: batch_norm(shape, affine),
            shape,
        )
        for shape in ((12,), LINE, IMAGE, VOLUME)
        for affine in (True, False)
    },
    "conv, batch norm, relu": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, bias=False), batch_norm((6, 1, 1), True), nn.ReLU(True)
        ),
        IMAGE,
    ),
    "input normalisation": (lambda: Normalise(4), IMAGE),
    "learnt scale": (lambda: Scale(4), IMAGE),
    "learnt divisor": (lambda: Divide(4), IMAGE),
    "learnt scalar": (of(lambda x, a: a * x, ()), IMAGE),
    "learnt factor of every element": (of(lambda x, a: x * a, IMAGE), IMAGE),
    "factor that broadcasts x": (of(lambda x, a: x[:, :1] * a, (3, 7, 6)), IMAGE),
    "mask": (of(lambda x: x * (torch.arange(6, dtype=x.dtype) % 2)), IMAGE),
    "multiplication in place": (of(lambda x: (x + 0).mul_(0.5)), IMAGE),
    "2 x + 1": (lambda: Constant("2 x + 1"), IMAGE),
    "x / 3 - 1": (lambda: Constant("x / 3 - 1"), IMAGE),
    "1 - x": (lambda: Constant("1 - x"), IMAGE),
    "learnt bias": (of(lambda x, b: x + b, (4, 1, 1)), IMAGE),
    **{
        f"residual {form}": (
            lambda form=form: Residual(nn.Conv2d(4, 4, 3, padding=1), form),
            IMAGE,
        )
        for form in ("x + f", "x - f", "f - x", "x + 0.7 f", "x - 0.7 f", "f += x")
    },
    "sum that broadcasts": (of(lambda x: x + x.mean(1, keepdim=True)), IMAGE),
    "x plus x": (of(lambda x: x + x), IMAGE),
    "x minus x": (of(lambda x: (x - x) + 0.1 * x), IMAGE),
    **{
        f"cat along axis {dim}": (
            lambda dim=dim: Concatenate(nn.Conv2d(4, 4, 3, padding=1), dim),
            IMAGE,
        )
        for dim in (1, 2, -1)
    },
    "cat of a tensor with itself": (of(lambda x: torch.cat([x, x, x], 1)), IMAGE),
    **{
        f"stack along axis {dim}, then {op}": (
            lambda dim=dim, op=op: Stack(nn.Conv2d(4, 4, 3, padding=1), dim, op),
            IMAGE,
        )
        for dim in (1, 2, 4)
        for op in ("sum", "max")
    },
    **{
        f"{op} of the channels": (
            lambda op=op: Split(nn.Conv2d(3, 3, 3, padding=1), 3, op),
            IMAGE,
        )
        for op in ("split", "tensor_split", "slice")
    },
    "chunk": (of(lambda x: torch.cat(list(x.chunk(3, 1)[:2]), -1)), IMAGE),
    "unbind": (of(lambda x: x.unbind(1)[2] - x.unbind(1)[0]), IMAGE),
    **{f"shape: {op}": (lambda op=op: Shape(op), IMAGE) for op in SHAPE_OPERATIONS},
    "slice from the end": (of(lambda x: x[:, -3:, ..., 1:-1]), IMAGE),
    "slice with a step": (of(lambda x: x[:, :, 1::3]), IMAGE),
    "index one channel": (of(lambda x: x[:, 2]), IMAGE),
    "squeeze": (of(lambda x: x.unsqueeze(-1).squeeze()), LINE),
    "movedim": (of(lambda x: x.movedim(1, -1)), IMAGE),
    "swap samples to the middle and back": (
        of(lambda x, w: (x.transpose(0, 1) @ w).transpose(0, 1), (9, 5)),
        LINE,
    ),
    "unflatten": (lambda: nn.Unflatten(1, (2, 2)), IMAGE),
    "pixel shuffle by reshape and permute": (
        of(
            lambda x: (
                x.unflatten(1, (2, 2)).permute(0, 1, 3, 4, 2).reshape(len(x), 2, 7, 12)
            )
        ),
        IMAGE,
    ),
    "constant padding": (lambda: nn.ConstantPad2d((1, 0, 2, 3), 0.7), IMAGE),
    "cropping by negative padding": (lambda: nn.ZeroPad2d((-1, 1, 0, -2)), IMAGE),
    "reflection padding": (lambda: nn.ReflectionPad2d(2), IMAGE),
    "replication padding": (lambda: nn.ReplicationPad2d(2), IMAGE),
    "circular padding": (lambda: nn.CircularPad2d(2), IMAGE),
    "nearest upsampling 1d": (lambda: nn.Upsample(scale_factor=2), LINE),
    "nearest upsampling 2d": (lambda: nn.Upsample(scale_factor=(2, 3)), IMAGE),
    "nearest upsampling 3d": (lambda: nn.Upsample(scale_factor=2), VOLUME),
    **{
        f"antialiased {mode} resizing": (
            of(
                lambda x, mode=mode: F.interpolate(x, (5, 4), mode=mode, antialias=True)
            ),
            IMAGE,
        )
        for mode in ("bilinear", "bicubic")
    },
    "nearest resizing": (lambda: nn.Upsample(size=(5, 11)), IMAGE),
    "weight norm": (
        lambda: parametrizations.weight_norm(nn.Conv2d(4, 6, 3)),
        IMAGE,
    ),
    "weight norm of a linear": (
        lambda: parametrizations.weight_norm(nn.Linear(12, 5)),
        (12,),
    ),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Conv2d(4, 6, 3)).eval(),
        IMAGE,
    ),
    "own parametrization": (lambda: parametrized(nn.Conv2d(4, 6, 3)), IMAGE),
    "weights applied twice": (lambda: Twice(nn.Conv2d(4, 4, 3, padding=1)), IMAGE),
    "linear weights applied twice": (lambda: Twice(nn.Linear(9, 9)), LINE),
    "weights applied to two inputs": (lambda: Siamese(nn.Conv2d(4, 5, 3)), IMAGE),
    "a weight used as it is and transposed": (
        of(lambda x, w: F.relu(x @ w) @ w.t(), (12, 5)),
        (12,),
    ),
    "a weight used as two convolutions": (
        of(lambda x, w: F.conv2d(x, w) + F.conv2d(1 - x, 3 * w), (6, 4, 3, 3)),
        IMAGE,
    ),
    "detached branch": (of(lambda x: x + x.detach().relu()), IMAGE),
    "python control flow": (of(lambda x: x if x.sum() > 1e9 else 2 * x.relu()), IMAGE),
    "contiguous": (of(lambda x: x.mT.contiguous()), IMAGE),
    "channels last": (
        lambda: nn.Sequential(
            Function(lambda x: x.contiguous(memory_format=torch.channels_last)),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ),
        IMAGE,
    ),
    # Rare linear operations.
    "features first": (of(lambda x, w: (w @ x.t()).t(), (5, 12)), (12,)),
    "where with a number": (of(lambda x: torch.where(x > 0.2, x, 0.5)), IMAGE),
    "masked fill": (of(lambda x: x.masked_fill(x < -0.3, -0.3)), IMAGE),
    "native dropout": (
        of(lambda x: torch.ops.aten.native_dropout(x, 0.4, True)[0]),
        IMAGE,
    ),
    "a cast and back": (of(lambda x: x.double().mul(2).to(x.dtype)), IMAGE),
    "flip": (of(lambda x: x.flip(-1)), IMAGE),
    "index": (of(lambda x: x[:, [2, 0, 2]]), IMAGE),
    "write into a slice": (of(lambda x: write_slice(x)), IMAGE),
    "in-place relu on a slice": (of(lambda x: relu_on_slice(x)), IMAGE),
    "batch centred": (of(lambda x: x - x.mean(0, keepdim=True)), IMAGE),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), IMAGE),
    "bilinear upsampling": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "unfold": (lambda: nn.Unfold(3), IMAGE),
    # Smooth activations, whose slope carries gradient of second order.
    **{
        f"smooth {activation.__name__}": (activation, IMAGE)
        for activation in (
            nn.GELU,
            nn.SiLU,
            nn.Softplus,
            nn.ELU,
            nn.SELU,
            nn.CELU,
            nn.Mish,
            nn.Hardswish,
            nn.Tanh,
            nn.Sigmoid,
        )
    },
    "smooth exp": (of(lambda x: torch.exp(x)), IMAGE),
    "tanh gelu": (lambda: nn.GELU(approximate="tanh"), IMAGE),
    "elu in place": (
        lambda: nn.Sequential(nn.Linear(12, 9), nn.ELU(0.7, inplace=True)),
        (12,),
    ),
    "celu in place": (  # torch rounds 1 / alpha to float32, so alpha is a power of 2
        lambda: nn.Sequential(nn.Linear(12, 9), nn.CELU(0.5, inplace=True)),
        (12,),
    ),
    **{
        f"rrelu {name}": (
            of(lambda x, options=options: F.rrelu(1 * x, **options)),
            IMAGE,
        )
        for name, options in (
            ("in training", {"training": True}),
            ("in eval mode", {"training": False}),
            ("in place", {"training": True, "inplace": True}),
            ("in place in eval mode", {"training": False, "inplace": True}),
        )
    },
    "threshold in place": (
        lambda: nn.Sequential(nn.Linear(12, 9), nn.Threshold(0.1, 0.3, inplace=True)),
        (12,),
    ),
    "transposed in place": (of(lambda x: (2 * x).transpose_(1, 2)), LINE),
    "features first in place": (of(lambda x, w: (w @ x.t()).t_(), (5, 12)), (12,)),
    "one more dimension in place": (of(lambda x: (2 * x).unsqueeze_(1)), LINE),
    "one less dimension in place": (
        of(lambda x: x.unsqueeze(1).mul(2).squeeze_(1).unsqueeze_(0).squeeze_()),
        LINE,
    ),
    "rounded": (of(lambda x: x * x.sign() + x.round() * x.floor()), IMAGE),
    "quarter turn": (of(lambda x: x.rot90(1, (2, 3))), IMAGE),
    "scattered": (
        of(lambda x: torch.zeros_like(x).scatter_add(1, x.detach().argsort(1), x)),
        IMAGE,
    ),
    "added at indices": (
        of(lambda x: x.index_add(1, torch.tensor([2, 0]), x[:, :2], alpha=0.5)),
        IMAGE,
    ),
    "gated recurrent unit": (
        lambda: First(nn.GRU(9, 5, batch_first=True)),
        LINE,
    ),
    # Products of two tensors that both depend on x.
    "x times x": (of(lambda x: x * x), IMAGE),
    "squeeze and excite": (lambda: SqueezeExcite(4, 3), IMAGE),
    "gated unit": (of(lambda x, w: (x @ w) * torch.sigmoid(x), (9, 9)), LINE),
    "gated linear unit": (lambda: nn.GLU(1), IMAGE),
    "addcmul": (of(lambda x: torch.addcmul(x, x, x.tanh(), value=0.3)), IMAGE),
    "lerp": (of(lambda x: torch.lerp(x, x.tanh(), 0.3)), IMAGE),
    "quotient": (of(lambda x: x / (1 + x.square().mean(1, keepdim=True))), IMAGE),
    "batch of products of x with x": (of(lambda x: torch.bmm(x, x.mT)), LINE),
    "products of x with x": (of(lambda x: x @ x.mT), IMAGE),
    "product of x with x over samples": (of(lambda x: x @ (x.t() @ x)), (5,)),
    "bilinear pooling": (
        of(lambda x: torch.einsum("nchw,ndhw->ncd", x, x.relu())),
        IMAGE,
    ),
    "product added to a batch": (of(lambda x: torch.baddbmm(x, x @ x.mT, x)), LINE),
    "product added to another": (of(lambda x: torch.addmm(x, x @ x.t(), x)), (5,)),
    # Statistics of each sample.
    "softmax": (lambda: nn.Softmax(1), IMAGE),
    "softmax over the last axis": (lambda: curved(nn.Softmax(-1)), LINE),
    "softmax over the samples": (lambda: curved(nn.Softmax(0)), LINE),
    "log softmax": (lambda: nn.LogSoftmax(1), IMAGE),
    "log sum exp": (of(lambda x: torch.logsumexp(x, (1, 2))), IMAGE),
    "softmin": (lambda: curved(nn.Softmin(2)), IMAGE),
    "layer norm": (lambda: curved(learnt(nn.LayerNorm(9))), LINE),
    "layer norm of an image": (lambda: learnt(nn.LayerNorm(IMAGE)), IMAGE),
    "layer norm without scale": (
        lambda: curved(nn.LayerNorm(9, elementwise_affine=False, eps=0.1)),
        LINE,
    ),
    "layer norm of channels, written out": (of(channel_norm, (4, 1, 1)), IMAGE),
    "group norm": (lambda: learnt(nn.GroupNorm(2, 4)), IMAGE),
    "group norm of a line": (lambda: curved(nn.GroupNorm(4, 4, affine=False)), LINE),
    **{
        f"instance norm of {len(shape) - 1} axes, affine={affine}": (
            lambda shape=shape, affine=affine: curved(
                learnt(getattr(nn, f"InstanceNorm{len(shape) - 1}d")(4, affine=affine))
            ),
            shape,
        )
        for shape in (LINE, IMAGE, VOLUME)
        for affine in (True, False)
    },
    "instance norm with running statistics": (
        lambda: nn.InstanceNorm2d(4, track_running_stats=True).eval(),
        IMAGE,
    ),
    "rms norm": (lambda: learnt(nn.RMSNorm(9)), LINE),
    "local response norm": (lambda: nn.LocalResponseNorm(3, alpha=0.5), IMAGE),
    "unit length": (of(lambda x: F.normalize(x, dim=1)), IMAGE),
    "length": (of(lambda x: torch.linalg.vector_norm(x, dim=(2, 3))), IMAGE),
    "cosine similarity": (
        of(lambda x, w: F.cosine_similarity(x, w, dim=2), (4, 9)),
        LINE,
    ),
    "variance": (of(lambda x: x.var(1)), IMAGE),
    "standard deviation": (of(lambda x: x.std((1, 2), correction=0)), IMAGE),
    "variance and mean": (
        of(lambda x: torch.add(*torch.var_mean(x.tanh(), (2, 3)))),
        IMAGE,
    ),
    "deviation and mean": (of(lambda x: torch.add(*torch.std_mean(x, 1))), IMAGE),
    # Attention, from its parts and as one operation.
    "attention written out": (
        of(lambda x, *w: written_attention(x, *w), (9, 6), (9, 6), (9, 4)),
        LINE,
    ),
    "attention in 3 axes": (
        of(lambda x: F.scaled_dot_product_attention(x, x.tanh(), x)),
        LINE,
    ),
    # Elementwise functions.
    **{
        f"smooth {function.__name__}": (of(lambda x, f=function: f(x)), IMAGE)
        for function in (
            *(torch.sin, torch.cos, torch.atan, torch.asinh, torch.sinh, torch.cosh),
            *(torch.erf, torch.expm1, torch.square, F.logsigmoid, F.softsign),
            *(F.tanhshrink,),
        )
    },
    "square root": (of(lambda x: (x.square() + 0.1).sqrt()), IMAGE),
    "inverse root": (of(lambda x: (x.square() + 0.5).rsqrt()), IMAGE),
    "reciprocal": (of(lambda x: (x.square() + 0.5).reciprocal()), IMAGE),
    "number divided by x": (of(lambda x: 2 / (x.square() + 0.5)), IMAGE),
    "logarithm": (of(lambda x: (x.square() + 0.5).log() + x.abs().log1p()), IMAGE),
    "other logarithms": (
        of(lambda x: (x.square() + 0.5).log2() + (x.square() + 0.2).log10()),
        IMAGE,
    ),
    "power": (of(lambda x: x**3 + (x.square() + 0.2) ** 0.7), IMAGE),
    # Elements in another order.
    "sorted": (of(lambda x: x.sort(1).values), IMAGE),
    "largest two": (of(lambda x: x.topk(2, 1).values), IMAGE),
    "median": (of(lambda x: x.median(-1).values), IMAGE),
    "third smallest": (of(lambda x: x.kthvalue(3, 2, keepdim=True).values), IMAGE),
}
