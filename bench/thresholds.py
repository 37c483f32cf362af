"""Gated kernels against torch's dense products, by the share of outputs that are live.

python bench/thresholds.py [--device cuda]

For each layer and share: milliseconds of pull, push and weight gradient together, gated
and dense, and their ratio. The shares at which the ratio passes 1 are what
``MOST_LIVE`` in fastjac/thresholds.py is chosen from.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import clock
import torch

from fastjac.rules.activation import Gate
from fastjac.rules.base import Rule, Sum
from fastjac.rules.convolution import Convolution, Geometry
from fastjac.rules.gated import GatedLayer
from fastjac.rules.layout import Packed
from fastjac.rules.linear import Linear
from fastjac.rules.live import Live

SHARES = (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SAMPLES, ROWS = 32, 10


def convolution(channels: int, size: int) -> tuple[Convolution, torch.Size]:
    """A 3x3 convolution that keeps channels and size."""
    shape = torch.Size((SAMPLES, channels, size, size))
    geometry = Geometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)
    weight = torch.randn(channels, channels, 3, 3)
    return Convolution(weight, geometry, shape), shape


def linear(inputs: int, outputs: int) -> tuple[Linear, torch.Size]:
    """A linear layer; the shape is that of its output."""
    return Linear(torch.randn(outputs, inputs)), torch.Size((SAMPLES, outputs))


LAYERS: dict[str, Callable[[], tuple[Convolution | Linear, torch.Size]]] = {
    "conv 32, 32x32": lambda: convolution(32, 32),
    "conv 64, 16x16": lambda: convolution(64, 16),
    "conv 128, 8x8": lambda: convolution(128, 8),
    "linear 1024 to 1024": lambda: linear(1024, 1024),
    "linear 256 to 128": lambda: linear(256, 128),
}


def passes(rules: list[Rule], rows: torch.Tensor, tangents: torch.Tensor) -> None:
    """Pull, push and weight gradient of a chain whose first rule has the weight."""
    layer, *gates = rules
    for gate in gates:
        rows = gate.pull(rows)
    layer.pull(rows)
    layer.weight_gradients(rows, tangents, [Sum()])
    pushed = layer.push(tangents)
    for gate in gates:
        pushed = gate.push(pushed)


def gated_layer(
    layer: Convolution | Linear, gate: Gate, shape: torch.Size
) -> GatedLayer:
    """The native rule for a layer and the gate behind it."""
    packed = Packed(layer, shape, shape[2:].numel())
    live = Live(
        packed.geometry,
        shape,
        shape,
        gate,
        None,
        None,
        layer.weight,
        positions=packed.channels_leave_lanes or packed.on_gpu,
    )
    return GatedLayer(layer, packed, live, "")


def times(
    name: str, share: float, device: str = "cpu", rounds: int = 7
) -> tuple[float, float]:
    """Median seconds, gated and dense, interleaved, on torch's default device."""
    layer, shape = LAYERS[name]()
    gate = Gate((torch.rand(shape) < share).float(), shape)
    gated = gated_layer(layer, gate, shape)
    rows = torch.randn(ROWS, *shape)
    below = (
        shape if isinstance(layer, Convolution) else (SAMPLES, layer.weight.shape[1])
    )
    tangents = torch.randn(ROWS, *below)
    taken: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(rounds + 1):
            for into, rules in zip(taken, ([gated], [layer, gate]), strict=True):
                gated._gathered = None
                step = partial(passes, rules, rows, tangents)
                into.append(clock.once(step, device))
    return statistics.median(taken[0][1:]), statistics.median(taken[1][1:])


def lines(device: str, shares: Sequence[float] = SHARES) -> Iterator[str]:
    """One line a layer and share; on a GPU for strict float32 and for TF32."""
    torch.set_default_device(device)
    for allowed in (False, True) if device == "cuda" else (False,):
        torch.backends.cudnn.allow_tf32 = allowed
        torch.backends.cuda.matmul.allow_tf32 = allowed
        if device == "cuda":
            yield "TF32 allowed" if allowed else "strict float32"
        yield f"{'layer':20} {'live':>5} {'gated ms':>9} {'dense ms':>9} {'ratio':>6}"
        for name in LAYERS:
            for share in shares:
                gated, dense = times(name, share, device)
                yield (
                    f"{name:20} {share:5.0%} {1000 * gated:9.2f} {1000 * dense:9.2f} "
                    f"{gated / dense:6.2f}"
                )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for line in lines(parser.parse_args().device):
        print(line, flush=True)


if __name__ == "__main__":
    main()
