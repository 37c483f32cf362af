"""The paper's experiments at a size that takes seconds, on images made up here."""

import gzip
import struct
from dataclasses import replace

import numpy as np

from fastjac.paper import experiment
from fastjac.paper.presets import RECIPES
from fastjac.paper.recipes import Phase

FULL = RECIPES["mnist", "full"]
TINY = replace(
    FULL,
    options={"widths": (4, 4, 16)},
    train=Phase(20, 20, 3e-3, weight_decay=1e-3, final=0.1),
    harden=Phase(6, 20, 1e-3, final=0.1),
    measure=replace(
        FULL.measure,
        images=20,
        slow_images=6,
        fgsm_eps=(0.0, 0.1),
        jsma_eps=(0.0, 1.0),
        jsma_steps=3,
        pgd_linf=(0.1,),
        pgd_l2=(),
        pgd_steps=2,
        auto_linf=0.0,
    ),
    lambda_sweep=(0.01,),
    share_sweep=(1.0,),
    seeds=2,
    cost_batch=4,
)


def write_idx(path, values):
    header = struct.pack(">HBB", 0, 8, values.ndim)
    sizes = b"".join(struct.pack(">I", n) for n in values.shape)
    path.write_bytes(gzip.compress(header + sizes + values.tobytes()))


def write_data(folder):
    """Write images in MNIST's format: a bright row for each class, and noise."""
    folder.mkdir()
    random = np.random.RandomState(0)
    for part, count in (("train", 200), ("t10k", 60)):
        labels = np.arange(count) % 10
        images = random.randint(0, 80, (count, 28, 28))
        images[np.arange(count), 2 * labels + 4] = 250
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels.astype(np.uint8))


def reproduce(data, out, **options):
    fixed = {"recipe": TINY, "verify": False, "progress": False, "processes": 2}
    return experiment.reproduce(data, "mnist", out, **{**fixed, **options})
