"""What is measured on a network: DeepFool, Jacobian norms, accuracy under attacks."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fastjac import attacks, robustness
from fastjac.checkpoint import write_atomic
from fastjac.paper.recipes import Measure

BATCH = 100
Attacked = Callable[[Tensor, Tensor], Tensor]


def measure(
    network: nn.Module,
    part: TensorDataset,
    what: Measure,
    *,
    checkpoint: Path,
    seed: int,
    watch: Callable[[Any, str], Any],
) -> dict[str, Any]:
    """Measure the network on the first images of ``part``.

    Args:
        network: in eval mode.
        part: test images and labels.
        what: which measures, on how many images.
        checkpoint: file to keep what is finished in; the same call goes on from it.
        seed: of random starts.
        watch: wraps a loader, for progress and stopping.

    Returns:
        Plain numbers: rho_adv with its standard error, Jacobian norms, and for each
        attack a list of [eps, accuracy].
    """
    network.eval()
    report = robustness.evaluate(
        network,
        watch(_loader(part, what.images), "DeepFool, FGSM"),
        fgsm_eps=what.fgsm_eps,
        bounds=(0.0, 1.0),
        examples=0,
        checkpoint=checkpoint.with_name(checkpoint.name + ".deepfool"),
        seed=seed,
        progress=False,
    )
    relative = report.per_sample["relative_distance"]
    relative = relative[relative.isfinite()]
    error = float(relative.std() / len(relative) ** 0.5) if len(relative) > 1 else 0.0
    found: dict[str, Any] = {
        "images": report.samples,
        "rho_adv": report.rho_adv,
        "rho_adv_error": error,
        "mean_distance": report.mean_distance,
        "fooled": report.fooled,
        "jacobian_norm": report.jacobian_norm,
        "jacobian_norm_adversarial": report.jacobian_norm_adversarial,
        "fgsm": [[eps, value] for eps, value in report.fgsm.items()],
    }
    slow = Slow(network, _loader(part, what.slow_images), checkpoint, watch)
    return {**found, **slow(what, seed), "slow_images": what.slow_images}


class Slow:
    """The attacks of many steps, each finished eps kept in a file.

    Args:
        network: in eval mode.
        loader: batches (x, y), not shuffled.
        kept: the file.
        watch: wraps a loader, for progress and stopping.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: DataLoader,
        kept: Path,
        watch: Callable[[Any, str], Any],
    ) -> None:
        self.network, self.loader, self.kept, self.watch = network, loader, kept, watch
        self.device = next(network.parameters()).device
        self.done: dict[str, float] = {}
        if kept.exists():
            self.done = json.loads(kept.read_text())

    def __call__(self, what: Measure, seed: int) -> dict[str, Any]:
        """Accuracy under each attack."""
        found: dict[str, Any] = {}
        for eps in what.jsma_eps:
            value = self.accuracy(f"JSMA {eps:g}", self.jsma(eps, what.jsma_steps))
            found.setdefault("jsma", []).append([eps, value])
        for norm, sizes in (("linf", what.pgd_linf), ("l2", what.pgd_l2)):
            for eps in sizes:
                attack = self.pgd(eps, norm, what.pgd_steps, seed)
                value = self.accuracy(f"PGD {norm} {eps:g}", attack)
                found.setdefault(f"pgd_{norm}", []).append([eps, value])
        if what.auto_linf and find_spec("torchattacks") is not None:
            attack = self.auto(what.auto_linf, seed)
            value = self.accuracy(f"AutoAttack {what.auto_linf:g}", attack)
            found["autoattack"] = [[what.auto_linf, value]]
        return found

    def accuracy(self, name: str, attack: Attacked) -> float:
        """Share of the images that are still right after the attack."""
        if name not in self.done:
            hits, count = 0, 0
            for x, y in self.watch(self.loader, name):
                x, y = x.to(self.device), y.to(self.device)
                with torch.no_grad():
                    right = self.network(x).argmax(1) == y
                if bool(right.any()):
                    moved = attack(x[right], y[right])
                    with torch.no_grad():
                        hits += int((self.network(moved).argmax(1) == y[right]).sum())
                count += len(y)
            self.done[name] = hits / count
            text = json.dumps(self.done).encode()
            write_atomic(self.kept, lambda file: file.write(text))
        return self.done[name]

    def jsma(self, eps: float, steps: int) -> Attacked:
        """JSMA towards the class after the true one, ``eps`` a pixel and step."""

        def attack(x: Tensor, y: Tensor) -> Tensor:
            if eps == 0:
                return x
            target = (y + 1) % self.network(x[:1]).shape[1]
            found = attacks.jsma(self.network, x, target, steps=steps, theta=eps)
            return found.adversarial

        return attack

    def pgd(self, eps: float, norm: Any, steps: int, seed: int) -> Attacked:
        """PGD with one random start."""

        def attack(x: Tensor, y: Tensor) -> Tensor:
            draws = torch.Generator(x.device).manual_seed(seed)
            return attacks.pgd(
                self.network,
                x,
                y,
                eps,
                (0.0, 1.0),
                steps=steps,
                norm=norm,
                generator=draws,
            )

        return attack

    def auto(self, eps: float, seed: int) -> Attacked:
        """The parameter-free AutoAttack, by torchattacks."""
        import torchattacks

        found = torchattacks.AutoAttack(self.network, norm="Linf", eps=eps, seed=seed)
        return lambda x, y: found(x, y)


def _loader(part: TensorDataset, images: int) -> DataLoader:
    first = Subset(part, range(min(images, len(part))))
    return DataLoader(first, batch_size=BATCH)
