"""Live densities and times on trained weights, before and after hardening."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from contestants import GROUPS, fused
from measure import interleaved, medians, stepper
from nets import NETS
from sections import keep, markdown
from torch import Tensor, nn

from fastjac.data import open_dataset


def data_folder() -> Path | None:
    """The folder with MNIST; None if there is none."""
    named = os.environ.get("FASTJAC_DATA")
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = (Path(named) if named else beside) / "mnist"
    return folder if folder.is_dir() else None


def live_shares(model: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Share of each layer's outputs that can carry a cotangent.

    Behind a ReLU those above zero; if a max pool follows, those that also won a window.
    """
    shares = {}
    layers = list(model)
    out = x
    for index, layer in enumerate(layers):
        out = layer(out)
        if not isinstance(layer, nn.ReLU):
            continue
        live = out > 0
        name = f"{index} {type(layers[index - 1]).__name__}"
        following = layers[index + 1] if index + 1 < len(layers) else None
        if isinstance(following, nn.MaxPool2d):
            pooled, route = F.max_pool2d(
                out, following.kernel_size, following.stride, return_indices=True
            )
            winners = torch.zeros_like(out).flatten(2)
            winners.scatter_(2, route.flatten(2), (pooled > 0).float().flatten(2))
            live = winners > 0
        shares[name] = live.float().mean().item()
    return shares


def train(model: nn.Module, x: Tensor, y: Tensor, lam: float) -> None:
    """One pass over the data by Adam, with lam times the fused penalty."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for images, labels in zip(x.split(100), y.split(100), strict=True):
        optimizer.zero_grad()
        if lam:
            penalty, logits = fused(model, images)
            loss = F.cross_entropy(logits, labels) + lam * penalty
        else:
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
    model.eval()


def trained(folder: Path, quick: bool) -> str:
    """The MNIST net with random weights, trained on MNIST, then hardened."""
    found = data_folder()
    if found is None:
        return "Skipped: no MNIST (set FASTJAC_DATA)."
    count = 2_000 if quick else 20_000
    data = open_dataset(found)
    images, labels = data.train.tensors
    images, labels = images[:count], labels[:count]
    held_out, truth = (tensor[:1000] for tensor in data.test.tensors)
    model = NETS["mnist"].build()
    names = ["one projection", "fused", "fused with loss"]
    rows = []
    for phase in ("random weights", "trained", "hardened"):
        if phase != "random weights":
            part = slice(0, count // 4 if phase == "hardened" else count)
            lam = 0.03 if phase == "hardened" else 0.0
            train(model, images[part], labels[part], lam)
        batch, target = held_out[:64], truth[:64]
        with torch.no_grad():
            shares = live_shares(model, batch)
            right = (model(held_out).argmax(1) == truth).float().mean().item()
        steps = {
            name: stepper(GROUPS["jacobian"][name].total, model, batch, target)
            for name in names
        }
        ms = medians(interleaved(steps, 3 if quick else 9))
        rows.append(
            [
                phase,
                f"{100 * right:.1f}%",
                ", ".join(f"{n}: {100 * s:.1f}%" for n, s in shares.items()),
                *(f"{1000 * ms[name]:.1f}" for name in names),
            ]
        )
    header = ["weights", "test accuracy", "live", *(f"{n}, ms a step" for n in names)]
    keep(folder / "density.csv", header, rows)
    return markdown(header, rows)
