"""Which operations equal their linear map plus a bias that is at hand.

A piecewise-linear operation ``f`` with the map ``A`` at ``u`` is *exact* here if
``f(u) = A u + b`` for a ``b`` that its rule knows as a bias, or for ``b = 0``: a ReLU
is, and a ReLU6 is not, whose upper bound is a constant of its own.
"""

from __future__ import annotations

from torch import Tensor

from fastjac.graph import Arc

#: Operations that are linear in what varies, wherever they are at.
LINEAR = frozenset(
    f"{name}Backward{i}"
    for name, numbers in {
        "Relu": "0",
        "LeakyRelu": "01",
        "PreluKernel": "0",
        "RreluWithNoise": "01",
        "Abs": "0",
        "NativeDropout": "0",
        "Neg": "0",
        **dict.fromkeys(("MaxPool2DWithIndices", "MaxPool3DWithIndices"), "0"),
        **dict.fromkeys(("AdaptiveMaxPool2D", "AdaptiveMaxPool3D"), "0"),
        **dict.fromkeys(("AvgPool2D", "AvgPool3D"), "0"),
        **dict.fromkeys(("AdaptiveAvgPool2D", "AdaptiveAvgPool3D"), "0"),
        **dict.fromkeys(("Amax", "Amin"), "0"),
        **dict.fromkeys(("Sum", "Mean"), "01"),
        **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Alias", "Clone"), "0"),
        **dict.fromkeys(("Squeeze", "Unsqueeze"), "0123"),
        **dict.fromkeys(("T", "Transpose"), "01"),
        **dict.fromkeys(("Permute", "Expand", "Slice", "Select", "Unbind"), "0"),
        **dict.fromkeys(("Split", "SplitWithSizes"), "0"),
    }.items()
    for i in numbers
)

#: Operations that are linear if the other factor does not vary.
BILINEAR = frozenset(f"{name}Backward0" for name in ("Mul", "Mm")) | {"MulBackward1"}

#: Operations that are linear if all of their arguments vary.
JOINT = frozenset(
    f"{name}Backward0" for name in ("Add", "Sub", "Cat", "Maximum", "Minimum")
)


def bias_of(arc: Arc, argument: int) -> Tensor | None:
    """Return the bias that an operation was called with, if it is a parameter.

    One of a single element that torch broadcasts over the channels is left out.
    """
    node = arc.node.next_functions[argument][0]
    variable: Tensor | None = getattr(node, "variable", None)
    if variable is None or variable.shape != arc.out_shape[1:2]:
        return None
    return variable


def is_exact(arc: Arc, samples: int) -> bool:
    """Whether an operation equals its map plus the bias that its rule knows."""
    name, several = arc.name, len(arc.varying) > 1
    if name in LINEAR:
        return True
    if name in BILINEAR:
        return not several
    if name in JOINT:
        return len(arc.varying) == len(arc.node.next_functions)
    aligned = arc.out_shape[0] == samples  # one entry a sample, as lifts have
    if name == "ConvolutionBackward0":
        # Of a bias that is frozen the size is known, but not the bias.
        none = tuple(arc.saved("bias_sym_sizes_opt") or (0,)) == (0,)
        return none or (aligned and bias_of(arc, 2) is not None)
    if name == "AddmmBackward0":
        plain = arc.argument == 1 and not several and arc.saved("beta") in (None, 1)
        return plain and aligned and bias_of(arc, 0) is not None
    return False
