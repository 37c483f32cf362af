"""Measures of robustness (Jakubovitz and Giryes, ECCV 2018)."""

import warnings

from torch import Tensor

from fastjac.attacks import DeepFoolResult


def rho_adv(result: DeepFoolResult, x: Tensor) -> float:
    r"""Mean size of the perturbation found, relative to the sample.

    :math:`\rho_{adv} = \frac1N \sum_i \|r_i\|_2 / \|x_i\|_2`, the measure of
    Moosavi-Dezfooli et al. (DeepFool, 2016, section 4) and of the paper's tables. All
    samples count, those that were not fooled with what had been accumulated when the
    steps ran out.

    Args:
        result: what `attacks.deepfool` returned for `x`.
        x: (N, ...) the clean samples, N >= 1.

    Returns:
        The mean over the samples that are not all zero (a warning says how many are).

    Raises:
        ValueError: `x` is not of the shape of the result, or has no nonzero sample.

    Example:
        >>> import torch
        >>> from fastjac import attacks, robustness
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> x = torch.tensor([[3.0, 4.0]])
        >>> round(robustness.rho_adv(attacks.deepfool(model, x, overshoot=0.0), x), 3)
        0.6
    """
    attacked = tuple(result.perturbation.shape)
    if attacked != tuple(x.shape):
        raise ValueError(
            f"`x` must be what was attacked, of shape {attacked}; got {tuple(x.shape)}"
        )
    sizes = x.flatten(1).norm(dim=1).double()
    given = sizes > 0
    if not bool(given.any()):
        raise ValueError("`x` must have a nonzero sample: ||r|| / ||x|| is not defined")
    if not bool(given.all()):
        warnings.warn(
            f"{int((~given).sum())} of {len(x)} samples are all zero and left out of "
            "rho_adv: ||r|| / ||x|| is not defined for them",
            UserWarning,
            stacklevel=2,
        )
    norms = result.perturbation.flatten(1).norm(dim=1).double()
    return float((norms[given] / sizes[given]).mean())
