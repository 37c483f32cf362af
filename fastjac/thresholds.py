"""From which share of live outputs on the dense product is faster than the gated one.

One table for all devices. What bench/thresholds.py prints is what it is made from:

* a CPU: measured; bench/NOTES.md has the figures;
* a GPU: **predicted** from the roofline in bench/NOTES.md, not measured yet. Gated
  kernels are bound by FP32 arithmetic and L1. A dense convolution in strict float32 has
  the same arithmetic for every output, so gating pays up to about half; one by TF32
  tensor cores is some five times faster, so that few outputs may be live. Linear layers
  are dense products there always.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastjac import native
from fastjac.rules.convolution import Convolution
from fastjac.rules.linear import Linear

#: The largest share of live outputs at which a layer runs gated, by where it runs.
MOST_LIVE = {
    "cpu": {Convolution: 0.85, Linear: 0.6},
    "gpu, float64": {Convolution: 0.5, Linear: 0.0},
    "gpu, strict float32": {Convolution: 0.5, Linear: 0.0},
    "gpu, TF32 allowed": {Convolution: 0.25, Linear: 0.0},
}

#: The same for convolutions of few input channels on a GPU: a dense one keeps tensor
#: cores and vectors idle there, whatever the precision.
FEW_CHANNELS = 8
MOST_LIVE_OF_FEW = 0.6

#: From how many samples on one product for both gradients of a head (rules/dense_head)
#: beats two, by the precision of products. It saves 2 N operations for each element of
#: M and reads M three times; predicted as above for 50 TFLOP/s, 400 by TF32, 3.3 TB/s.
SAMPLES_OF_HEAD = {"strict": 128, "TF32": 1024}


def fewest_samples_of_head(rows: Tensor) -> int:
    """Return from how many samples on a head's gradients are made in one product."""
    allowed = rows.dtype == torch.float32 and _tf32(torch.backends.cuda.matmul)
    return SAMPLES_OF_HEAD["TF32" if allowed else "strict"]


def most_live(layer: Convolution | Linear) -> float:
    """Return the largest share of live outputs at which ``layer`` runs gated."""
    weight = layer.weight
    if not native.on_gpu(weight):
        return MOST_LIVE["cpu"][type(layer)]
    if isinstance(layer, Convolution) and weight.shape[1] < FEW_CHANNELS:
        return MOST_LIVE_OF_FEW
    if weight.dtype == torch.float64:
        return MOST_LIVE["gpu, float64"][type(layer)]
    allowed = _tf32(torch.backends.cudnn)
    precision = "TF32 allowed" if allowed else "strict float32"
    return MOST_LIVE[f"gpu, {precision}"][type(layer)]


def held_in(layer: Convolution | Linear) -> torch.dtype | None:
    """Return in how few bits a gated layer's rows are held; None for its weights' own.

    A convolution of a network in bfloat16 holds them so on a GPU, half the bytes, where
    convolutions may use TF32 and so may round what they multiply; they are added up in
    float32 all the same. Those in float16 are held in float32: products over many
    layers leave its range.
    """
    if layer.forward_dtype != torch.bfloat16 or not native.on_gpu(layer.weight):
        return None
    return torch.bfloat16 if _tf32(torch.backends.cudnn) else None


def _tf32(products: Any) -> bool:
    """Whether a kind of products may use TF32, by torch's older or newer setting."""
    try:
        return bool(products.allow_tf32)
    except RuntimeError:  # the newer one has been used, and it says something else
        return getattr(products, "fp32_precision", "") == "tf32"
