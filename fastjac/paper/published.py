"""The numbers of the paper's Tables 3 and 4, and what of the paper cannot be matched.

D. Jakubovitz, R. Giryes. Improving DNN robustness to adversarial attacks using Jacobian
regularization. ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A line of Table 3 or 4: test accuracy in percent, rho_adv in units of 1e-2."""

    accuracy: float
    rho_adv: float


TABLES: dict[str, dict[str, Published]] = {
    "mnist": {
        "none": Published(99.08, 20.67),
        "adversarial": Published(99.03, 22.38),
        "input-gradient": Published(99.25, 23.43),
        "input-gradient+adversarial": Published(98.88, 23.49),
        "cross-lipschitz": Published(98.64, 29.03),
        "cross-lipschitz+adversarial": Published(98.73, 32.38),
        "jacobian": Published(98.44, 34.24),
        "jacobian+adversarial": Published(98.00, 36.29),
    },
    "cifar-10": {
        "none": Published(88.79, 1.21),
        "adversarial": Published(88.88, 1.23),
        "input-gradient": Published(88.56, 1.43),
        "input-gradient+adversarial": Published(88.49, 2.17),
        "cross-lipschitz": Published(88.91, 2.08),
        "cross-lipschitz+adversarial": Published(88.49, 4.04),
        "jacobian": Published(89.16, 3.42),
        "jacobian+adversarial": Published(88.49, 6.03),
    },
}
"""By data set and key of a main row. There are none for Fashion-MNIST."""

NUMBERS = {"mnist": "Table 3", "cifar-10": "Table 4"}

REASONS = (
    (
        "Table 1, the scale of the Jacobian norms",
        "how the paper averages and scales the norms is not known here; what can be"
        " compared is how much each defence lowers them, so the table gives the mean of"
        " ||J(x_i)||_F and no difference",
    ),
    (
        "eq. 4, sum or mean",
        "the norm is the square root of a sum over the batch while the cross-entropy is"
        " a mean, so that the effect of lambda grows with the root of the batch size:"
        " a lambda belongs to a batch size. Here the mean stands under the root: the"
        " lambda of eq. 4 is the one here over sqrt(N)",
    ),
    (
        "eq. 16, its sign",
        "a loss with the sign as printed would reward large norms; the penalty is"
        " added here",
    ),
    (
        "the released code",
        "it penalises the Jacobian of the first sample of each batch only, and adds"
        " 1e-3/2 ||W||^2 over all layers but the last in both phases, which the paper"
        " does not mention; the decay is used here, the first-sample penalty has a row"
        " of its own",
    ),
    (
        "lambda of eq. 5 and 6, the FGSM step and share in training",
        "they are this reproduction's own, and printed with each row",
    ),
    (
        "the CIFAR-10 network",
        "the widths of its layers are not given; 64-128-256-512 and 512 hidden units"
        " are used here",
    ),
)
"""What cannot be matched, and why."""
