"""Equal before timed: errors against float64, interleaved medians, peak memory."""

from __future__ import annotations

import copy
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from contestants import GROUPS, Contestant, Total, step
from nets import NETS
from torch import Tensor, nn

#: Relative to float64: far above rounding, far below any wrong factor or lost term.
LIMIT = 1e-3
CHECK_SAMPLES = 4


@dataclass(frozen=True)
class Error:
    """Relative to float64: the value, and the gradient of all parameters in l2."""

    value: float
    gradient: float


def values(total: Total, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The penalty, and the gradient of the loss plus 1 times it, both float64."""
    torch.manual_seed(2)
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    loss, value = total(model, x, labels, 1.0)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        torch.zeros(p.numel()) if g is None else g.flatten().cpu()
        for p, g in zip(parameters, gradients, strict=True)
    ]
    return value.detach().double().cpu(), torch.cat([f.double() for f in flat])


def check(
    contestant: Contestant, model: nn.Module, x: Tensor, limit: float = LIMIT
) -> Error:
    """Compare with the reference in float64 on a few samples; raise if it is not equal.

    Raises:
        AssertionError: the contestant does not compute what it is timed for.
    """
    x = x[:CHECK_SAMPLES]
    exact = copy.deepcopy(model).double()
    value, gradient = values(contestant.reference, exact, x.double())
    got, found = values(contestant.total, model, x)
    error = Error(relative(got, value), relative(found, gradient))
    if not max(error.value, error.gradient) < limit:
        raise AssertionError(f"{contestant} differs from float64 by {error}")
    return error


def relative(got: Tensor, expected: Tensor) -> float:
    norm = expected.norm().item()
    difference = (got - expected).norm().item()
    return difference / norm if norm > 0 else difference


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int, seconds: float = 60.0
) -> dict[str, list[float]]:
    """Seconds of each function, one call of each a round, in one process.

    Drift of the machine meets all alike. Stops early, after at least three rounds, when
    ``seconds`` are spent.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begun > seconds:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in times.items()}


def stepper(total: Total, model: nn.Module, x: Tensor, y: Tensor):
    """The step as a function without arguments."""
    return lambda: step(total, model, x, y)


def peak_memory(net: str, name: str, samples: int, classes: int = 10) -> float:
    """MiB that a contestant's step takes above the plain step, in a fresh process.

    The median of three: what the C library keeps of freed memory differs by 30 MiB.
    """
    command = [sys.executable, __file__, net, name, str(samples), str(classes)]

    def once() -> float:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return float(done.stdout.split()[-1])

    return statistics.median(once() for _ in range(3))


def _peak_kib() -> int:
    """Return the peak of this program's resident set in KiB.

    Not getrusage's: that counts the process that started this one, before its exec.
    """
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])  # type: ignore[index]


def _peak_above_plain(net: str, name: str, samples: int, classes: int) -> float:
    """Peak of the resident set after the step, less that after plain steps."""
    model = NETS[net].build(classes)
    x, y = NETS[net].batch(samples, classes)
    contestants = GROUPS["jacobian"]
    for _ in range(2):
        step(contestants["plain step"].total, model, x, y)
    before = _peak_kib()
    for _ in range(2):
        step(contestants[name].total, model, x, y)
    return (_peak_kib() - before) / 1024


if __name__ == "__main__":
    print(_peak_above_plain(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5])))
