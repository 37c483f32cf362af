"""Attacks: how little it takes to fool a model.

`deepfool` (the nearest boundary), `fgsm` and `pgd` (a given distance), `jsma` (few
features). Each takes a model, any module or callable from `(N, ...)` to logits
`(N, K)`, and a batch. The classes `DeepFool`, `FGSM`, `PGD` and `JSMA` are called like
those of torchattacks, and `adapters` makes them attacks of foolbox and ART.

>>> import torch
>>> from fastjac import attacks
>>> x, model = torch.rand(8, 4), torch.nn.Linear(4, 3)
>>> attacks.deepfool(model, x).adversarial.shape
torch.Size([8, 4])
"""

from fastjac.attacks.attack import Attack
from fastjac.attacks.classes import FGSM, JSMA, PGD, PGDL2, DeepFool
from fastjac.attacks.deepfool import DeepFoolResult, deepfool
from fastjac.attacks.fgsm import fgsm
from fastjac.attacks.jsma import JSMAResult, jsma
from fastjac.attacks.pgd import pgd

__all__ = [
    "FGSM",
    "JSMA",
    "PGD",
    "PGDL2",
    "Attack",
    "DeepFool",
    "DeepFoolResult",
    "JSMAResult",
    "deepfool",
    "fgsm",
    "jsma",
    "pgd",
]
