"""fastjac's attacks as attacks of foolbox and of ART (adversarial-robustness-toolbox).

Nothing of either package is imported until an adapter is asked for.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from fastjac.attacks.arguments import Bounds, Model, Norm
from fastjac.attacks.deepfool import deepfool
from fastjac.attacks.fgsm import fgsm
from fastjac.attacks.pgd import pgd

_FIXED = {"fgsm": fgsm, "pgd": pgd}


def foolbox_attack(name: str, *, norm: Norm = "l2", **settings: Any) -> Any:
    """An attack that foolbox users call as `attack(fmodel, x, labels, epsilons=...)`.

    Args:
        name: "deepfool" (a `MinimizationAttack`), "fgsm" or "pgd" (each a
            `FixedEpsilonAttack`).
        norm: "l2" or "linf", what is kept small and what foolbox measures.
        settings: keywords of `fastjac.attacks.deepfool`, `fgsm` or `pgd`.

    Returns:
        A foolbox attack for a `foolbox.PyTorchModel`, whose bounds are kept.

    Raises:
        ImportError: foolbox is not installed.
        ValueError: an unknown name or norm; a criterion other than
            `Misclassification`, or for fgsm and pgd `TargetedMisclassification` (when
            it is called).

    In use::

        attack = foolbox_attack("deepfool", steps=50)
        _, adversarial, fooled = attack(fmodel, x, y, epsilons=2.0)
    """
    _check(name)
    fb = _import("foolbox", "foolbox")
    eagerpy = _import("eagerpy", "foolbox")

    class Fastjac:
        distance = fb.distances.l2 if norm == "l2" else fb.distances.linf

        def run(
            self,
            model: Any,
            inputs: Any,
            criterion: Any,
            *,
            epsilon: float = 0.0,
            early_stop: float | None = None,
        ) -> Any:
            x, restore = eagerpy.astensor_(inputs)
            bounds = (float(model.bounds.lower), float(model.bounds.upper))
            y, targeted = _criterion(fb, criterion, name)
            net = _Raw(model)
            if name == "deepfool":
                found = deepfool(
                    net, x.raw, y, bounds=bounds, norm=norm, **settings
                ).adversarial
            else:
                attack: Any = _FIXED[name]
                found = attack(
                    net,
                    x.raw,
                    y,
                    epsilon,
                    bounds,
                    norm=norm,
                    targeted=targeted,
                    **settings,
                )
            return restore(eagerpy.astensor(found))

    base = fb.attacks.base
    kind = base.MinimizationAttack if name == "deepfool" else base.FixedEpsilonAttack
    return type(f"Fastjac_{name}_{norm}", (Fastjac, kind), {})()


def art_attack(
    name: str,
    classifier: Any,
    *,
    norm: Norm = "l2",
    eps: float = 0.3,
    **settings: Any,
) -> Any:
    """An attack that ART users call as `attack.generate(x, y)` on NumPy arrays.

    Args:
        name: "deepfool", "fgsm" or "pgd".
        classifier: an `art.estimators.classification.PyTorchClassifier`; its clip
            values are kept as bounds and its preprocessing is applied.
        norm: "l2" or "linf".
        eps: size of the perturbation for fgsm and pgd.
        settings: keywords of `fastjac.attacks.deepfool`, `fgsm` or `pgd`.

    Returns:
        An `art.attacks.evasion` kind of attack. `y`, classes `(N,)` or one-hot
        `(N, K)`, may be left out: then the model's own predictions are taken.

    Raises:
        ImportError: ART is not installed.
        ValueError: an unknown name or norm.

    In use::

        adversarial = art_attack("deepfool", classifier).generate(x)
    """
    _check(name)
    package = "adversarial-robustness-toolbox"
    base = _import("art.attacks", package).EvasionAttack
    estimators = _import("art.estimators.classification", package)

    class Fastjac:
        attack_params = (*base.attack_params, "norm", "eps")
        _estimator_requirements = (estimators.PyTorchClassifier,)
        estimator: Any
        norm: Norm
        eps: float

        def generate(self, x: Any, y: Any = None, **_: Any) -> Any:
            found = [
                _generate(
                    name, self.estimator, part, classes, self.norm, self.eps, settings
                )
                for part, classes in _parts(self.estimator, x, y)
            ]
            return torch.cat(found).cpu().numpy().astype(x.dtype)

    attack = type(f"Fastjac_{name}", (Fastjac, base), {})(estimator=classifier)
    attack.norm, attack.eps = norm, eps
    return attack


def _generate(
    name: str,
    classifier: Any,
    x: Tensor,
    y: Tensor | None,
    norm: Norm,
    eps: float,
    settings: dict[str, Any],
) -> Tensor:
    clip = classifier.clip_values
    bounds: Bounds | None = None if clip is None else (float(clip[0]), float(clip[1]))
    net = _Art(classifier)
    if name == "deepfool":
        found = deepfool(net, x, y, bounds=bounds, norm=norm, **settings)
        return found.adversarial
    if y is None:
        with torch.no_grad():
            y = net(x).argmax(1)
    return _FIXED[name](net, x, y, eps, bounds, norm=norm, **settings)


def _parts(classifier: Any, x: Any, y: Any) -> list[tuple[Tensor, Tensor | None]]:
    """Arrays as tensors on the classifier's device, a thousand samples at a time."""
    images = torch.as_tensor(x, dtype=torch.float32)
    if y is None:
        return [(part.to(classifier.device), None) for part in images.split(1000)]
    classes = torch.as_tensor(y)
    classes = classes.argmax(1) if classes.ndim == 2 else classes
    return [
        (part.to(classifier.device), label.long().to(classifier.device))
        for part, label in zip(images.split(1000), classes.split(1000), strict=True)
    ]


def _import(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this adapter needs the package {package}: pip install {package}"
        ) from error


def _check(name: str) -> None:
    if name != "deepfool" and name not in _FIXED:
        raise ValueError(f"`name` must be 'deepfool', 'fgsm' or 'pgd'; got {name!r}")


def _criterion(fb: Any, criterion: Any, name: str) -> tuple[Tensor, bool]:
    """Classes, and whether they are to be reached."""
    found = fb.attacks.base.get_criterion(criterion)
    if isinstance(found, fb.criteria.Misclassification):
        return found.labels.raw, False
    targeted = isinstance(found, fb.criteria.TargetedMisclassification)
    if targeted and name != "deepfool":
        return found.target_classes.raw, True
    raise ValueError(
        f"`criterion` of {name} must be Misclassification"
        f"{'' if name == 'deepfool' else ' or TargetedMisclassification'}; got {found}"
    )


class _Raw(nn.Module):
    """A foolbox model as one from tensors to tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._call: Model = model
        inner = getattr(model, "_model", None)
        self.inner = inner if isinstance(inner, nn.Module) else None
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return self._call(x)


class _Art(nn.Module):
    """An ART classifier as a model from tensors to logits."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.inner = classifier.model
        self._classifier = classifier
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self._classifier._apply_preprocessing(x, None, no_grad=False)
        return self._classifier._model(x)[-1]
