"""DeepFool on the paper's MNIST net, 1,000 test digits: fastjac and its peers.

    python bench/deepfool.py --rounds 3 --out bench/results/deepfool.md

All stay within [0, 1] and take at most 50 steps. They run in turn, so that whatever
else the machine does falls on all alike, and medians are compared; foolbox and those
that go image by image take fewer digits, and the time of a digit is compared. The table
shows how many digits each fooled and at what median distance: fastjac must do as well
as the fast peers in both. adv-lib takes the digits as one batch and, faster on a CPU,
in batches of 128, its best of 16 to 256 on two cores.

`--keep FILE` appends each round to a file and makes the table of all in it, so that the
rounds can be run at different times.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from report import device
from torch import Tensor, nn

import fastjac
from fastjac import attacks, models
from fastjac.data import idx

SLOW_DIGITS = 100
# The fastest of 16, 32, 64, 128 and 256 on two cores.
ADV_LIB_BATCH = 128
TRAINING_STEPS = 600


@dataclass(frozen=True)
class Contestant:
    name: str
    module: str
    slow: bool
    attack: Callable[[types.ModuleType, nn.Module, Tensor, Tensor], Tensor]


def fastjac_attack(module, net, x, y):
    return attacks.deepfool(net, x, y, bounds=(0, 1)).adversarial


def adv_lib_attack(module, net, x, y):
    return module.df(net, x, y, steps=50, return_unsuccessful=True)


def adv_lib_in_batches(module, net, x, y):
    parts = zip(x.split(ADV_LIB_BATCH), y.split(ADV_LIB_BATCH), strict=True)
    return torch.cat([adv_lib_attack(module, net, *part) for part in parts])


def foolbox_attack(module, net, x, y):
    fmodel = module.PyTorchModel(net, bounds=(0, 1), device="cpu")
    attack = module.attacks.L2DeepFoolAttack(steps=50)
    return attack(fmodel, x, y, epsilons=None)[0]


def torchattacks_attack(module, net, x, y):
    return module.DeepFool(net, steps=50)(x, y)


def art_attack(module, net, x, y):
    estimators = importlib.import_module("art.estimators.classification")
    classifier = estimators.PyTorchClassifier(
        model=net,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="cpu",
    )
    attack = module.DeepFool(classifier, max_iter=50, epsilon=0.02, verbose=False)
    return torch.from_numpy(attack.generate(x.numpy()))


CONTESTANTS = [
    Contestant("fastjac", "fastjac", False, fastjac_attack),
    Contestant("adv-lib", "adv_lib.attacks.deepfool", False, adv_lib_attack),
    Contestant("adv-lib, 128s", "adv_lib.attacks.deepfool", False, adv_lib_in_batches),
    Contestant("foolbox", "foolbox", True, foolbox_attack),
    Contestant("torchattacks", "torchattacks", True, torchattacks_attack),
    Contestant("ART", "art.attacks.evasion", True, art_attack),
]


def imported(contestant: Contestant) -> types.ModuleType:
    """The peer's module; what it imports for its plots and examples may be missing."""
    absent = [name for name in ("torchvision", "visdom") if not _there(name)]
    for name in absent:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[f"{name}.models"] = types.ModuleType(f"{name}.models")
        vars(sys.modules[name])["models"] = sys.modules[f"{name}.models"]
    try:
        return importlib.import_module(contestant.module)
    finally:
        for name in absent:
            del sys.modules[name], sys.modules[f"{name}.models"]


def _there(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def trained(images: Tensor, labels: Tensor) -> models.Network:
    torch.manual_seed(0)
    net = models.create("mnist").train()
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for batch in torch.randperm(len(images))[: 64 * TRAINING_STEPS].split(64):
        optimizer.zero_grad()
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
    return net.eval()


@dataclass(frozen=True)
class Run:
    """One run of one contestant."""

    name: str
    digits: int
    seconds: float
    fooled: float
    distance: float  # median l2


def run(contestant: Contestant, net: nn.Module, x: Tensor, y: Tensor) -> Run:
    """Time one attack on all of x, after one on two samples."""
    module = imported(contestant)
    contestant.attack(module, net, x[:2], y[:2])
    begin = time.perf_counter()
    adversarial = contestant.attack(module, net, x, y).detach()
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        fooled = (net(adversarial).argmax(1) != y).float().mean().item()
    norms = (adversarial - x).flatten(1).norm(dim=1)
    return Run(contestant.name, len(x), seconds, fooled, norms.median().item())


def one_round(
    names: Iterable[str], net: nn.Module, x: Tensor, y: Tensor, slow_digits: int
) -> list[Run]:
    """Run each contestant once; those that are slow on fewer digits."""
    runs = []
    for contestant in CONTESTANTS:
        if contestant.name in names:
            count = min(slow_digits, len(x)) if contestant.slow else len(x)
            runs.append(run(contestant, net, x[:count], y[:count]))
    return runs


@dataclass(frozen=True)
class Result:
    """What a contestant's runs say together."""

    name: str
    digits: int
    seconds: list[float]
    fooled: float
    distance: float

    @property
    def per_digit(self) -> float:
        return statistics.median(self.seconds) / self.digits


def results(runs: list[Run]) -> list[Result]:
    """Gather runs by contestant, in the order of `CONTESTANTS`."""
    found = []
    for contestant in CONTESTANTS:
        own = [r for r in runs if r.name == contestant.name]
        if own:
            digits = own[-1].digits
            assert all(r.digits == digits for r in own), "rounds of one size only"
            seconds = [r.seconds for r in own]
            last = own[-1]
            found.append(Result(last.name, digits, seconds, last.fooled, last.distance))
    return found


HEADER = (
    "DeepFool",
    "digits",
    "runs",
    "median s",
    "range s",
    "ms a digit",
    "times fastjac's",
    "fooled",
    "median l2",
)


def table(found: list[Result]) -> str:
    """The results in Markdown, with the ratio of the time of a digit to fastjac's."""
    ours = next(r for r in found if r.name == "fastjac")
    lines = [f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|"]
    for r in found:
        cells = (
            r.name,
            r.digits,
            len(r.seconds),
            f"{statistics.median(r.seconds):.2f}",
            f"{min(r.seconds):.2f} to {max(r.seconds):.2f}",
            f"{1e3 * r.per_digit:.2f}",
            f"{r.per_digit / ours.per_digit:.2f}",
            f"{r.fooled:.1%}",
            f"{r.distance:.4f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def mnist_folder() -> Path:
    named = os.environ.get("FASTJAC_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return (Path(named) if named else beside) / "mnist"


def mnist(cache: Path) -> tuple[nn.Module, Tensor]:
    """The net, trained once and kept in `cache`, and all test images."""
    data = idx(mnist_folder())
    file = cache / f"mnist-{TRAINING_STEPS}.pt"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        models.save(file, trained(*data.train.tensors))
    net, _ = models.load(file)
    images, labels = data.test.tensors
    with torch.no_grad():
        right = net(images[:1000]).argmax(1) == labels[:1000]
    assert right.float().mean() > 0.95
    return net, images


def versions() -> str:
    """The peers that are installed, with their versions."""
    packages = ("adv-lib", "foolbox", "torchattacks", "adversarial-robustness-toolbox")
    installed = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    return ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in packages
        if name in installed
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--slow-digits", type=int, default=SLOW_DIGITS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[c.name for c in CONTESTANTS])
    parser.add_argument("--keep", type=Path, help="JSON lines, one a run")
    parser.add_argument("--cache", type=Path, default=Path(".pytest_cache/deepfool"))
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    given = parser.parse_args()
    net, images = mnist(given.cache)
    x = images[: given.digits]
    with torch.no_grad():
        y = net(x).argmax(1)
    runs = []
    if given.keep and given.keep.exists():
        runs = [Run(**json.loads(line)) for line in given.keep.open()]
    for _ in range(given.rounds):
        fresh = one_round(given.only, net, x, y, given.slow_digits)
        runs += fresh
        if given.keep:
            with given.keep.open("a") as file:
                file.writelines(json.dumps(vars(r)) + "\n" for r in fresh)
        print(table(results(runs)), flush=True)
    if given.out:
        text = [
            f"# DeepFool on {device()}, {torch.get_num_threads()} threads",
            f"`python bench/deepfool.py`, {datetime.date.today()}: the paper's MNIST "
            "network after 600 training steps, test digits in [0, 1], at most 50 "
            "steps; the contestants in turn, each run after run.",
            f"{versions()}.",
            f"```\n{fastjac.build_info()}\n```",
            table(results(runs)),
        ]
        given.out.write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
