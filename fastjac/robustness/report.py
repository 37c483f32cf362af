"""What an evaluation found: numbers and examples, as a table, as JSON, as plots."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastjac.checkpoint import write_atomic

Curve = dict[float, float]


@dataclass(frozen=True)
class Examples:
    """A few samples with what fools the model; n of them, channels first.

    Attributes:
        images: (n, ...) clean.
        perturbations: (n, ...) found by DeepFool.
        adversarial: (n, ...) images with the perturbation.
        labels, predicted, fooled_into: (n,) true class, the model's class of the clean
            and of the adversarial image.
    """

    images: Tensor
    perturbations: Tensor
    adversarial: Tensor
    labels: Tensor
    predicted: Tensor
    fooled_into: Tensor


@dataclass(frozen=True)
class RobustnessReport:
    """How robust a model is on N samples.

    Attributes:
        samples: N.
        accuracy: share of clean samples that the model gets right.
        rho_adv: mean of ||r||_2 / ||x||_2 with r found by DeepFool.
        mean_distance, median_distance: of ||r||_2, in the units of x.
        fooled: share of samples for which DeepFool succeeded.
        iterations: mean number of its steps.
        fgsm: accuracy by eps, l_inf.
        pgd: accuracy by eps, l_inf, as far as it was asked for.
        jsma: accuracy after JSMA towards the next class, None if not asked for.
        jacobian_norm: mean ||J||_F at the clean samples (Table 1).
        jacobian_norm_adversarial: the same at DeepFool's perturbed samples.
        distance_estimate: mean of eq. 11 over the samples where it is finite.
        distance_lower_bound: mean of eq. 12 over those samples.
        curvature_bound: mean of eq. 15.
        per_sample: (N,) values behind these: "label", "correct", "distance",
            "relative_distance", "iterations", "fooled", "jacobian_norm",
            "jacobian_norm_adversarial", "distance_estimate", "distance_lower_bound",
            "curvature", "curvature_bound".
        examples: a few samples, or None.
        notes: sentences to print beside the numbers.
    """

    samples: int
    accuracy: float
    rho_adv: float
    mean_distance: float
    median_distance: float
    fooled: float
    iterations: float
    fgsm: Curve
    pgd: Curve
    jsma: float | None
    jacobian_norm: float
    jacobian_norm_adversarial: float
    distance_estimate: float
    distance_lower_bound: float
    curvature_bound: float
    per_sample: dict[str, Tensor]
    examples: Examples | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """The table: what was measured, and its value as text."""
        return [
            ("samples", f"{self.samples:,}"),
            ("accuracy", f"{self.accuracy:.2%}"),
            ("rho_adv, mean ||r|| / ||x|| of DeepFool", f"{self.rho_adv:.4f}"),
            ("distance, mean ||r||", f"{self.mean_distance:.4f}"),
            ("distance, median ||r||", f"{self.median_distance:.4f}"),
            ("fooled by DeepFool", f"{self.fooled:.2%}"),
            ("steps of DeepFool, mean", f"{self.iterations:.2f}"),
            *((f"accuracy, FGSM eps {e:g}", f"{a:.2%}") for e, a in self.fgsm.items()),
            *((f"accuracy, PGD eps {e:g}", f"{a:.2%}") for e, a in self.pgd.items()),
            *([] if self.jsma is None else [("accuracy, JSMA", f"{self.jsma:.2%}")]),
            ("Jacobian norm, clean, mean", f"{self.jacobian_norm:.4g}"),
            (
                "Jacobian norm, perturbed, mean",
                f"{self.jacobian_norm_adversarial:.4g}",
            ),
            ("distance estimate (eq. 11), mean", f"{self.distance_estimate:.4f}"),
            ("its lower bound (eq. 12), mean", f"{self.distance_lower_bound:.4f}"),
            ("curvature bound (eq. 15), mean", f"{self.curvature_bound:.4g}"),
        ]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value:>10}" for name, value in rows]
        return "\n".join([*lines, *self.notes])

    def __rich__(self) -> Any:
        """A table for `rich.print` and a console."""
        from rich.table import Table

        caption = "\n".join(self.notes) or None
        table = Table(title="Robustness", caption=caption)
        table.add_column("measure")
        table.add_column("value", justify="right")
        for name, value in self.rows():
            table.add_row(name, value)
        return table

    def as_dict(self) -> dict[str, Any]:
        """Every number, ready for JSON; examples are left out."""
        numbers = {
            name: value
            for name, value in vars(self).items()
            if name not in ("fgsm", "pgd", "per_sample", "examples", "notes")
        }
        return {
            **numbers,
            "fgsm": _pairs(self.fgsm),
            "pgd": _pairs(self.pgd),
            "notes": list(self.notes),
            "per_sample": {k: _plain(v) for k, v in self.per_sample.items()},
        }

    def save(self, path: str | Path) -> None:
        """Write every number as JSON, atomically. Infinite distances become null."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False)
        write_atomic(path, lambda file: file.write(text.encode()))

    @classmethod
    def load(cls, path: str | Path) -> "RobustnessReport":
        """Read what `save` wrote; without examples."""
        found = json.loads(Path(path).read_text())
        per_sample = {
            name: _tensor(values) for name, values in found.pop("per_sample").items()
        }
        for name in ("fgsm", "pgd"):
            found[name] = {pair["eps"]: pair["accuracy"] for pair in found[name]}
        found["notes"] = tuple(found["notes"])
        return cls(**found, per_sample=per_sample)

    def plot(self, folder: str | Path) -> list[Path]:
        """Write curves.png, distances.png and, if samples are images, examples.png.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from fastjac.robustness import figures

        return figures.save_all({"": self}, folder)


def _pairs(curve: Mapping[float, float]) -> list[dict[str, float]]:
    return [{"eps": eps, "accuracy": accuracy} for eps, accuracy in curve.items()]


def _tensor(values: list[Any]) -> Tensor:
    if any(v is None or isinstance(v, float) for v in values):
        finite = [torch.inf if v is None else v for v in values]
        return torch.tensor(finite, dtype=torch.float64)
    return torch.tensor(values)


def _plain(values: Tensor) -> list[Any]:
    if not values.is_floating_point():
        return values.tolist()
    return [v if v < torch.inf else None for v in values.tolist()]
