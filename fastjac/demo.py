"""The whole job on data that comes along: train, harden, attack, compare.

A small network learns scikit-learn's digits, is hardened with the Jacobian penalty, and
both are measured on the test images: accuracy, mean Jacobian norm, rho_adv under
DeepFool, accuracy under FGSM.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastjac import attacks, checkpoint, data, models, plots, robustness
from fastjac._version import __version__
from fastjac.harden import harden, train
from fastjac.harden.modes import evaluating
from fastjac.jacobian import jacobian_norm


@dataclass(frozen=True)
class Settings:
    """What the demo does; the defaults take about a quarter of a minute."""

    seed: int = 0
    train_epochs: int = 20
    harden_epochs: int = 12
    batch: int = 32
    lr: float = 1e-3
    lam: float = 0.005
    eps: tuple[float, ...] = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3)
    test_images: int | None = None


@dataclass(frozen=True)
class Measures:
    """What was measured of one model on N test images.

    Attributes:
        accuracy: share of the test images classified rightly.
        jacobian_norm: mean over the images of ||J(x)||_F.
        rho_adv: mean over the images of ||r|| / ||x|| of DeepFool's perturbation r.
        median_distance: median of ||r||.
        fooled: share of the images for which DeepFool found a perturbation.
        fgsm_accuracy: accuracy under FGSM with each of the ``eps``, clipped to [0, 1].
    """

    accuracy: float
    jacobian_norm: float
    rho_adv: float
    median_distance: float
    fooled: float
    fgsm_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class DemoResult:
    """All numbers of a run, and where its files are."""

    settings: Settings
    before: Measures
    after: Measures
    test_images: int
    seconds: dict[str, float]
    files: dict[str, Path]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, as the JSON file has it."""
        return {
            "fastjac": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "settings": asdict(self.settings),
            "test_images": self.test_images,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "seconds": self.seconds,
        }

    def table(self) -> Any:
        """Return the comparison as a ``rich`` table."""
        from rich.table import Table

        table = Table(title="scikit-learn digits, test images", title_justify="left")
        table.add_column("")
        for column in ("before", "after hardening"):
            table.add_column(column, justify="right")
        for row in self.rows():
            table.add_row(*row)
        return table

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the table's rows: what, before, after."""
        a, b = self.before, self.after
        rows = [
            ("test accuracy", f"{a.accuracy:.1%}", f"{b.accuracy:.1%}"),
            (
                "mean Jacobian norm ‖J‖",
                f"{a.jacobian_norm:.2f}",
                f"{b.jacobian_norm:.2f}",
            ),
            ("rho_adv under DeepFool", f"{a.rho_adv:.3f}", f"{b.rho_adv:.3f}"),
        ]
        for i, eps in enumerate(self.settings.eps):
            if eps:
                first, second = a.fgsm_accuracy[i], b.fgsm_accuracy[i]
                name = f"accuracy under FGSM, eps {eps:g}"
                rows.append((name, f"{first:.1%}", f"{second:.1%}"))
        return rows


def run(
    out: str | Path, settings: Settings = Settings(), *, progress: bool = True
) -> DemoResult:
    """Train, harden, measure, and write the files to ``out``.

    Args:
        out: folder for ``demo.json``, ``demo.png`` and the two models; made if needed.
        settings: sizes, epochs, seed.
        progress: show bars while training.

    Raises:
        ImportError: scikit-learn or matplotlib is missing; the message says what to
            install.
        CheckpointError: ``out`` cannot be written to.
    """
    out = Path(out)
    digits = data.digits()
    x, y = (part[: settings.test_images] for part in digits.test.tensors)
    loader = DataLoader(digits.train, batch_size=settings.batch, shuffle=True)
    options: dict[str, Any] = {
        "lr": settings.lr,
        "seed": settings.seed,
        "progress": progress,
    }
    seconds: dict[str, float] = {}
    with _one_thread(), torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        first = models.create("digits")
        with _timed(seconds, "train"):
            train(first, loader, epochs=settings.train_epochs, **options)
        second = copy.deepcopy(first)
        with _timed(seconds, "harden"):
            epochs = settings.harden_epochs
            harden(second, loader, lam=settings.lam, epochs=epochs, **options)
        with _timed(seconds, "measure"):
            before, found_before = measure(first, x, y, settings.eps)
            after, found_after = measure(second, x, y, settings.eps)
    names = {
        "numbers": "demo.json",
        "figure": "demo.png",
        "before": "digits.pt",
        "after": "digits-hardened.pt",
    }
    files = {key: out / name for key, name in names.items()}
    result = DemoResult(settings, before, after, len(x), seconds, files)
    models.save(files["before"], first)
    models.save(files["after"], second, {"lam": settings.lam})
    _draw(result, x, y, (found_before, found_after))
    text = json.dumps(result.as_dict(), indent=2) + "\n"
    checkpoint.write_atomic(files["numbers"], lambda file: file.write(text.encode()))
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context with one torch thread.

    A network this small gains nothing from a second one, loses a lot by it on a busy
    machine, and gives the same numbers whatever the number of processors.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begin


def measure(
    model: nn.Module, x: Tensor, y: Tensor, eps: Sequence[float]
) -> tuple[Measures, attacks.DeepFoolResult]:
    """Measure a model on images ``x`` (N, C, H, W) in [0, 1] with labels ``y`` (N,).

    Returns:
        The numbers, and what DeepFool found.
    """

    def accuracy(inputs: Tensor) -> float:
        with torch.no_grad():
            return float((model(inputs).argmax(1) == y).double().mean())

    with evaluating(model):
        found = attacks.deepfool(model, x)
        attacked = [
            attacks.fgsm(model, x, y, size, bounds=(0.0, 1.0)) if size else x
            for size in eps
        ]
        measures = Measures(
            accuracy=accuracy(x),
            jacobian_norm=float(jacobian_norm(model, x).double().mean()),
            rho_adv=robustness.rho_adv(found, x),
            median_distance=float(found.norms.double().median()),
            fooled=float(found.success.double().mean()),
            fgsm_accuracy=tuple(accuracy(inputs) for inputs in attacked),
        )
    return measures, found


def _draw(
    result: DemoResult,
    x: Tensor,
    y: Tensor,
    found: tuple[attacks.DeepFoolResult, attacks.DeepFoolResult],
) -> None:
    """Draw the figure with the first test image of each class that both got right."""
    right = (found[0].original_labels == y) & (found[1].original_labels == y)
    right &= found[0].success & found[1].success
    of_class = [torch.nonzero(right & (y == k)).flatten()[:1] for k in range(10)]
    shown = torch.cat(of_class)
    curves = [
        plots.Curve(
            name=name,
            color=color,
            eps=result.settings.eps,
            accuracy=measures.fgsm_accuracy,
            relative=one.norms / x.flatten(1).norm(dim=1),
            perturbation=one.perturbation[shown, 0],
            labels=one.labels[shown].tolist(),
        )
        for name, color, measures, one in zip(
            ("before", "hardened"),
            (plots.BEFORE, plots.AFTER),
            (result.before, result.after),
            found,
            strict=True,
        )
    ]
    title = "Hardening a digits classifier with the Jacobian penalty"
    plots.before_and_after(
        result.files["figure"], curves, x[shown, 0], y[shown].tolist(), title
    )
