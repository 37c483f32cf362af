"""What attack objects share: modes, normalisation, saving; see `classes`."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastjac.attacks.arguments import Model, check_count
from fastjac.attacks.expansion import evaluation_mode

UNIT = (0.0, 1.0)
TargetMap = Callable[[Tensor, Tensor], Tensor]


class Attack:
    """What the attack objects share: modes, normalisation, saving.

    Attributes:
        attack: its name.
        model: what it attacks.
        device: where images and labels are moved to, that of the model.
        attack_mode: "default" or "targeted(...)".
        targeted: whether labels are to be reached instead of left.
    """

    supported_mode: Sequence[str] = ("default", "targeted")

    def __init__(self, model: Model) -> None:
        self.attack = type(self).__name__
        self.model = model
        weights = model.parameters() if isinstance(model, nn.Module) else iter(())
        first = next(weights, None)
        self.device = None if first is None else first.device
        self.set_mode_default()
        self._normalization: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return adversarial images `(N, C, H, W)` for `images` of classes `labels`.

        With `set_normalization_used`, both are normalised.
        """
        images, labels = images.to(self.device), labels.to(self.device)
        if self._normalization is None:
            return self.forward(images, labels)
        # There and back again may leave [0, 1] by a rounding error.
        plain = self._denormalize(images).clamp(*UNIT)
        return self._normalize(self.forward(plain, labels))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Attack `images` in [0, 1]; what a subclass defines."""
        raise NotImplementedError

    def get_mode(self) -> str:
        """The attack mode."""
        return self.attack_mode

    def set_device(self, device: torch.device) -> None:
        """Say where images and labels are to be moved to."""
        self.device = device

    def set_mode_default(self) -> None:
        """Leave the labels given."""
        self.attack_mode, self.targeted = "default", False
        self._target_map: TargetMap = _same

    def set_mode_targeted_by_label(self, quiet: bool = True) -> None:
        """Take the labels given as the ones to reach."""
        self._set_targeted("label", _same)

    def set_mode_targeted_by_function(
        self, target_map_function: TargetMap, quiet: bool = True
    ) -> None:
        """Take `target_map_function(images, labels)` as the labels to reach."""
        self._set_targeted("custom", target_map_function)

    def set_mode_targeted_random(self, quiet: bool = True) -> None:
        """Reach a class drawn from all but the label given, torch's generator."""
        self._set_targeted("random", self._random_targets)

    def set_mode_targeted_least_likely(
        self, kth_min: int = 1, quiet: bool = True
    ) -> None:
        """Reach the class with the `kth_min`-th smallest logit but the label given."""
        check_count("kth_min", kth_min, 1)
        self._set_targeted(
            "least-likely", lambda x, y: self._unlikely_targets(x, y, kth_min)
        )

    def set_normalization_used(
        self, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Say that the images given are `(pixels - mean) / std`, by channel."""
        shape = (1, len(mean), 1, 1)
        self._normalization = (
            torch.tensor(mean, device=self.device).view(shape),
            torch.tensor(std, device=self.device).view(shape),
        )

    def save(
        self, data_loader: Iterable[Any], save_path: str | Path, **_: object
    ) -> tuple[float, float]:
        """Attack a data set; save `{"adv_inputs", "labels"}` with `torch.save`.

        Returns:
            The accuracy in percent that is left, and the mean l2 norm of the
            perturbations that changed it (NaN if there are none).
        """
        images, labels, norms, right = [], [], [], 0
        for x, y in data_loader:
            found = self(x, y)
            with evaluation_mode(self.model):
                correct = self.model(found).argmax(1) == y.to(found.device)
            right += int(correct.sum())
            shift = (found - x.to(found.device)).flatten(1).norm(dim=1)
            norms.append(shift[~correct])
            images.append(found.cpu())
            labels.append(y.cpu())
        all_labels = torch.cat(labels)
        saved = {"adv_inputs": torch.cat(images), "labels": all_labels}
        torch.save({**saved, "save_type": "float"}, save_path)
        return 100 * right / len(all_labels), torch.cat(norms).mean().item()

    def __repr__(self) -> str:
        shown = {
            name: value
            for name, value in vars(self).items()
            if not name.startswith("_") and name not in ("attack", "model")
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.attack}({settings})"

    def target(self, images: Tensor, labels: Tensor) -> Tensor:
        """(N,) the classes to leave or, in a targeted mode, to reach."""
        return self._target_map(images, labels).to(images.device).long()

    def attacked(self) -> Model:
        """The model as a function of images in [0, 1]."""
        if self._normalization is None:
            return self.model
        return _Normalized(self.model, self._normalize)

    def _set_targeted(self, kind: str, target_map: TargetMap) -> None:
        if "targeted" not in self.supported_mode:
            raise ValueError(f"{self.attack} has no targeted mode; use another attack")
        self.attack_mode, self.targeted = f"targeted({kind})", True
        self._target_map = target_map

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits `(N, K)` of `images` in [0, 1]."""
        with evaluation_mode(self.model):
            return self.attacked()(images)

    def _random_targets(self, images: Tensor, labels: Tensor) -> Tensor:
        classes = self.logits(images[:1]).shape[1]
        offset = torch.randint(1, classes, labels.shape, device=labels.device)
        return (labels + offset) % classes

    def _unlikely_targets(self, images: Tensor, labels: Tensor, kth: int) -> Tensor:
        logits = self.logits(images).scatter(1, labels.long()[:, None], torch.inf)
        if kth >= logits.shape[1]:
            raise ValueError(
                f"`kth_min` must be below the number of classes ({logits.shape[1]}); "
                f"got {kth}"
            )
        return logits.kthvalue(kth, dim=1).indices

    def _normalize(self, pixels: Tensor) -> Tensor:
        assert self._normalization is not None
        mean, std = self._normalization
        return (pixels - mean.to(pixels)) / std.to(pixels)

    def _denormalize(self, images: Tensor) -> Tensor:
        assert self._normalization is not None
        mean, std = self._normalization
        return images * std.to(images) + mean.to(images)


class _Normalized(nn.Module):
    """A model behind the normalisation of its input; modes pass through."""

    def __init__(self, model: Model, normalize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.training = False
        self.model, self.normalize = model, normalize

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(self.normalize(pixels))


def _same(images: Tensor, labels: Tensor) -> Tensor:
    return labels
