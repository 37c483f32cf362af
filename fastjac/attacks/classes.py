"""Attacks as objects, called like those of torchattacks.

    attack = DeepFool(model, steps=50)
    adversarial = attack(images, labels)

Images are in [0, 1] and stay there. Arguments, defaults and modes carry the names that
torchattacks gives them, so a script needs its import changed and nothing else; there is
nothing to print and no global state. Where the two differ in what they compute, the
class says so.
"""

from math import ceil

from torch import Tensor

from fastjac.attacks.arguments import Model, Norm
from fastjac.attacks.attack import UNIT, Attack
from fastjac.attacks.deepfool import deepfool
from fastjac.attacks.fgsm import fgsm
from fastjac.attacks.jsma import jsma
from fastjac.attacks.pgd import pgd

ALL_CLASSES = 2**31


class DeepFool(Attack):
    """`fastjac.attacks.deepfool` as an object.

    Numerics are the original's: overshoot applies to the accumulated perturbation and
    1e-4 is added to each distance, where torchattacks overshoots each step. Images that
    the model gets wrong anyway are left as they are in both.

    Args:
        model: module from `(N, C, H, W)` to logits.
        steps: most steps an image.
        overshoot: share by which the boundary is passed.

    Example:
        >>> import torch
        >>> from fastjac.attacks import DeepFool
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
        >>> images = torch.rand(5, 1, 2, 2)
        >>> labels = model(images).argmax(1)
        >>> attack = DeepFool(model, steps=50, overshoot=0.02)
        >>> attack(images, labels).shape
        torch.Size([5, 1, 2, 2])
    """

    supported_mode = ("default",)

    def __init__(self, model: Model, steps: int = 50, overshoot: float = 0.02) -> None:
        super().__init__(model)
        self.steps, self.overshoot = steps, overshoot

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for `images` in [0, 1]."""
        return self.forward_return_target_labels(images, labels)[0]

    def forward_return_target_labels(
        self, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adversarial images, and the classes that the model gives them."""
        found = deepfool(
            self.attacked(),
            images,
            labels,
            steps=self.steps,
            overshoot=self.overshoot,
            candidates=ALL_CLASSES,
            bounds=UNIT,
        )
        return found.adversarial, found.labels


class FGSM(Attack):
    """`fastjac.attacks.fgsm` as an object.

    Args:
        model: module from `(N, C, H, W)` to logits.
        eps: size of the step, l_inf.
    """

    def __init__(self, model: Model, eps: float = 8 / 255) -> None:
        super().__init__(model)
        self.eps = eps

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for `images` in [0, 1]."""
        y = self.target(images, labels)
        model, targeted = self.attacked(), self.targeted
        return fgsm(model, images, y, self.eps, UNIT, targeted=targeted)


class PGD(Attack):
    """`fastjac.attacks.pgd` in the l_inf norm as an object.

    Args:
        model: module from `(N, C, H, W)` to logits.
        eps: largest change of a pixel.
        alpha: size of a step.
        steps: number of steps.
        random_start: begin at a random point of the ball.
    """

    _norm: Norm = "linf"

    def __init__(
        self,
        model: Model,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ) -> None:
        super().__init__(model)
        self.eps, self.alpha = eps, alpha
        self.steps, self.random_start = steps, random_start

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for `images` in [0, 1]."""
        return pgd(
            self.attacked(),
            images,
            self.target(images, labels),
            self.eps,
            UNIT,
            steps=self.steps,
            step_size=self.alpha,
            norm=self._norm,
            random_start=self.random_start,
            targeted=self.targeted,
        )


class PGDL2(PGD):
    """`fastjac.attacks.pgd` in the l2 norm as an object; arguments as of `PGD`."""

    _norm = "l2"

    def __init__(
        self,
        model: Model,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
    ) -> None:
        super().__init__(model, eps, alpha, steps, random_start)


class JSMA(Attack):
    """`fastjac.attacks.jsma` with pixel pairs as an object.

    By default, as in torchattacks, the class to reach is the one after the label. With
    theta below 1 a pixel may be chosen again until it is saturated, as in the paper
    (torchattacks chooses each once).

    Args:
        model: module from `(N, C, H, W)` to logits.
        theta: change of a chosen pixel, of either sign.
        gamma: largest share of pixels changed, 0 to 1.
    """

    def __init__(self, model: Model, theta: float = 1.0, gamma: float = 0.1) -> None:
        super().__init__(model)
        self.theta, self.gamma = theta, gamma

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images for `images` in [0, 1]."""
        target = self.target(images, labels)
        if not self.targeted:
            target = (target + 1) % self.logits(images[:1]).shape[1]
        steps = ceil(images[0].numel() * self.gamma / 2)
        return jsma(
            self.attacked(), images, target, steps=steps, theta=self.theta, pixels=2
        ).adversarial
