"""Price of the second-order term of smooth networks, against one plain backward pass.

python bench/second_order.py                          # a few minutes
python bench/second_order.py convnet-gelu --rounds 40

A step with the penalty is timed as it is, and with the slopes of the activations taken
as constants, which leaves the second-order term out and the gradient wrong. The price
is the median difference of the two in one round, beside the median time that a plain
step's backward pass takes in the same rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from contestants import added, fused, step
from nets import NETS
from torch import Tensor, nn

from fastjac.recipes import elementwise
from fastjac.rules.base import Rule

DEFAULT = ("resnet18-gelu", "convnet-gelu")
HEADER = (
    "network", "N", "step", "without the term", "the term (quartiles)",
    "a plain backward pass", "ratio",
)  # fmt: skip


@contextmanager
def constant_slopes() -> Iterator[None]:
    """Take slopes as constants, as if activations were piecewise linear."""
    exact = elementwise.scale

    def detached(arc, factor: Tensor, shape: torch.Size | None = None) -> Rule:
        return exact(arc, factor.detach(), shape)

    elementwise.scale = detached
    try:
        yield
    finally:
        elementwise.scale = exact


def plain_backward(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Seconds of the backward pass of a plain step."""
    for parameter in model.parameters():
        parameter.grad = None
    loss = F.cross_entropy(model(x), y)
    start = time.perf_counter()
    loss.backward()
    return time.perf_counter() - start


def penalty_step(model: nn.Module, x: Tensor, y: Tensor, second_order: bool) -> float:
    """Seconds of a step with the penalty."""
    start = time.perf_counter()
    if second_order:
        step(added(fused), model, x, y)
    else:
        with constant_slopes():
            step(added(fused), model, x, y)
    return time.perf_counter() - start


def measured(net: str, rounds: int) -> list[str]:
    """One line of the table; the order within a round changes from round to round."""
    model, samples = NETS[net].build(), NETS[net].samples[0]
    x, y = NETS[net].batch(samples)
    ways = {
        "with": lambda: penalty_step(model, x, y, True),
        "without": lambda: penalty_step(model, x, y, False),
        "backward": lambda: plain_backward(model, x, y),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for done in range(rounds + 1):
        for name in sorted(ways, reverse=done % 2 == 1):
            spent = ways[name]()
            if done > 0:
                times[name].append(1000 * spent)
    pairs = zip(times["with"], times["without"], strict=True)
    low, term, high = statistics.quantiles([one - other for one, other in pairs], n=4)
    middle = {name: statistics.median(each) for name, each in times.items()}
    return [
        net,
        str(samples),
        f"{middle['with']:.0f} ms",
        f"{middle['without']:.0f} ms",
        f"{term:.0f} ms ({low:.0f} to {high:.0f})",
        f"{middle['backward']:.0f} ms",
        f"{term / middle['backward']:.2f}",
    ]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nets", nargs="*", default=DEFAULT, help=", ".join(NETS))
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    print(f"| {' | '.join(HEADER)} |")
    print("| --- " * len(HEADER) + "|")
    for net in arguments.nets:
        cells = measured(net, arguments.rounds)
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
