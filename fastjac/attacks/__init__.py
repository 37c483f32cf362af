"""Attacks: DeepFool and the fast gradient method.

>>> import torch
>>> from fastjac import attacks
>>> x, model = torch.rand(8, 4), torch.nn.Linear(4, 3)
>>> attacks.deepfool(model, x).adversarial.shape
torch.Size([8, 4])
"""

from fastjac.attacks.deepfool import DeepFoolResult, deepfool
from fastjac.attacks.fgsm import fgsm

__all__ = ["DeepFoolResult", "deepfool", "fgsm"]
