"""The paper's networks and a few small ones, by name, and files to keep them in.

Names: ``mnist`` and ``cifar`` are the networks of Jakubovitz and Giryes (ECCV 2018);
``digits`` is small enough for the demo; ``lenet5`` and ``mlp`` are for comparison. All
are plain ``nn.Sequential`` stacks that give logits (N, K).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastjac import checkpoint


class Network(nn.Sequential):
    """A stack that knows the name and options it was made with.

    Attributes:
        name: its name in :func:`names`.
        options: the keywords that were given to :func:`create`.
        input_shape: (C, H, W) of one input.
    """

    name: str
    options: dict[str, Any]

    def __init__(self, layers: Sequence[nn.Module], input_shape: tuple[int, ...]):
        super().__init__(*layers)
        self.input_shape = input_shape


def _mnist(
    classes: int = 10,
    dropout: float = 0.5,
    widths: tuple[int, ...] = (32, 64, 1024),
    init: str = "paper",
) -> Network:
    """The paper's MNIST network, that of the TensorFlow tutorial.

    conv 5x5 (32), pool, conv 5x5 (64), pool, 1024 units, dropout; SAME padding. With
    ``init="paper"`` weights are drawn from a normal of deviation 0.1 cut at 0.2, biases
    are 0.1; with "torch" both are as torch.nn.Linear and Conv2d make them.
    """
    if init not in ("paper", "torch"):
        raise ValueError(f"init (={init!r}) must be 'paper' or 'torch'")
    first, second, hidden = widths
    network = Network(
        [
            *_conv_relu(1, first, 5),
            nn.MaxPool2d(2),
            *_conv_relu(first, second, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(7 * 7 * second, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        ],
        (1, 28, 28),
    )
    for parameter in network.parameters() if init == "paper" else ():
        if parameter.dim() == 1:
            nn.init.constant_(parameter, 0.1)
        else:
            nn.init.trunc_normal_(parameter, std=0.1, a=-0.2, b=0.2)
    return network


def _cifar(
    classes: int = 10,
    dropout: float = 0.25,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    hidden: int = 512,
) -> Network:
    """The paper's CIFAR-10 network: sets of [conv 3x3, conv 3x3, max pool, dropout].

    Each set has ReLU after each convolution and keeps a share of 0.75 in dropout; two
    fully connected layers follow. The paper does not give the width of the first of
    them; ``hidden`` does. He initialisation.
    """
    if not 1 <= len(widths) <= 5:
        raise ValueError(
            f"widths (={widths}) must name 1 to 5 sets: each halves the 32x32 image"
        )
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        layers += [*_conv_relu(channels, width, 3), *_conv_relu(width, width, 3)]
        layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        channels = width
    side = 32 >> len(widths)
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU()]
    network = Network([*layers, nn.Linear(hidden, classes)], (3, 32, 32))
    _he(network)
    return network


def _digits(classes: int = 10, widths: tuple[int, ...] = (16, 32, 64)) -> Network:
    """A small net for the 8x8 digits: conv 3x3, conv 3x3, pool, one hidden layer."""
    first, second, hidden = widths
    network = Network(
        [
            *_conv_relu(1, first, 3),
            *_conv_relu(first, second, 3),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 4 * second, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        ],
        (1, 8, 8),
    )
    _he(network)
    return network


def _lenet5(classes: int = 10) -> Network:
    """LeNet-5 for 28x28 images, with ReLU and average pooling."""
    return Network(
        [
            *_conv_relu(1, 6, 5),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(5 * 5 * 16, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, classes),
        ],
        (1, 28, 28),
    )


def _mlp(
    classes: int = 10,
    shape: tuple[int, ...] = (1, 28, 28),
    widths: tuple[int, ...] = (1024, 1024),
) -> Network:
    """Fully connected ReLU layers over the flattened input; 784-1024-1024-10."""
    size = 1
    for length in shape:
        size *= length
    layers: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        layers += [nn.Linear(size, width), nn.ReLU()]
        size = width
    return Network([*layers, nn.Linear(size, classes)], tuple(shape))


def _conv_relu(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]


def _he(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
        else:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")


_MAKERS: dict[str, Callable[..., Network]] = {
    "mnist": _mnist,
    "cifar": _cifar,
    "digits": _digits,
    "lenet5": _lenet5,
    "mlp": _mlp,
}


def names() -> tuple[str, ...]:
    """Return the names that :func:`create` knows."""
    return tuple(_MAKERS)


def create(name: str, **options: Any) -> Network:
    """Make a network with fresh weights from torch's global generator.

    Args:
        name: one of :func:`names`.
        options: ``classes``, and by network ``dropout`` (share dropped), ``widths``,
            ``hidden``, ``shape``, ``init`` ("paper" or "torch", of ``mnist``).

    Returns:
        A network from (N, ``*input_shape``) to logits (N, classes).

    Raises:
        ValueError: unknown name or option.

    Example:
        >>> import torch
        >>> network = create("mnist", dropout=0.0)
        >>> network(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in network.parameters())
        3274634
    """
    if name not in _MAKERS:
        raise ValueError(
            f"name (={name!r}) is not a network known here: use one of"
            f" {', '.join(_MAKERS)}"
        )
    known = inspect.signature(_MAKERS[name]).parameters
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"network {name!r} has no option {', '.join(map(repr, unknown))}; it has"
            f" {', '.join(known)}"
        )
    network = _MAKERS[name](**options)
    network.name = name
    network.options = dict(options)
    return network


def save(
    path: str | Path, network: Network, notes: dict[str, Any] | None = None
) -> None:
    """Write a network made by :func:`create` to a file, atomically.

    Args:
        path: file to replace or create.
        network: its name, options and weights are kept.
        notes: plain values to keep beside it, such as how it was trained.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network (a {type(network).__name__}) was not made by models.create; save"
            " another model's state_dict with torch.save"
        )
    payload = {
        "name": network.name,
        "options": network.options,
        "state": network.state_dict(),
        "notes": notes or {},
    }
    checkpoint.save(path, "model", payload)


def load(path: str | Path) -> tuple[Network, dict[str, Any]]:
    """Read a network in eval mode and its notes from a file of :func:`save`.

    Raises:
        CheckpointError: no such file, a damaged one, or one that is no model.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder + "/net.pt", create("digits"), {"epochs": 3})
        ...     network, notes = load(folder + "/net.pt")
        >>> network.name, notes
        ('digits', {'epochs': 3})
    """
    content = checkpoint.load(path, "model")
    try:
        network = create(content["name"], **content["options"])
        state: dict[str, Tensor] = content["state"]
        network.load_state_dict(state)
    except (ValueError, RuntimeError, KeyError) as error:
        raise checkpoint.CheckpointError(
            f"{path} does not hold a network that this fastjac can make: {error}"
        ) from error
    return network.eval(), content["notes"]
