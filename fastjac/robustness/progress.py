"""How far an evaluation has come, and the file that it continues from."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastjac import checkpoint as files
from fastjac.attacks.arguments import Bounds, Model


@dataclass(frozen=True)
class Settings:
    """What is measured; a checkpoint belongs to one such choice."""

    fgsm_eps: tuple[float, ...]
    pgd_eps: tuple[float, ...]
    pgd_steps: int
    jsma_steps: int | None
    bounds: Bounds | None
    steps: int
    overshoot: float
    candidates: int
    examples: int
    seed: int
    backend: str


@dataclass
class Progress:
    """What has been measured so far: a few numbers a sample, and some examples."""

    values: dict[str, list[Tensor]] = field(default_factory=dict)
    pictures: dict[str, list[Tensor]] = field(default_factory=dict)
    batches: int = 0

    def add(self, values: dict[str, Tensor], pictures: dict[str, Tensor]) -> None:
        """Append a batch."""
        for store, more in ((self.values, values), (self.pictures, pictures)):
            for name, value in more.items():
                store.setdefault(name, []).append(value.cpu())
        self.batches += 1

    def joined(self) -> dict[str, Tensor]:
        """Each value over all samples so far, `(N, ...)`."""
        return {name: torch.cat(parts) for name, parts in self.values.items()}


def fingerprint(model: Model) -> str:
    """Hexadecimal digest of the weights; of nothing for a plain callable."""
    digest = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else {}
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        )
    return digest.hexdigest()


def resumed(path: str | Path | None, identity: dict[str, Any]) -> Progress:
    """What the checkpoint at `path` holds, once it is seen to be of this model."""
    if path is None or not Path(path).exists():
        return Progress()
    found = files.load(path, "evaluation")
    for name, what in (("model", "another model"), ("settings", "other settings")):
        if found[name] != identity[name]:
            raise ValueError(
                f"`checkpoint` (={path}) is of {what}; delete it or choose another file"
            )
    return Progress(found["values"], found["pictures"], found["batches"])


def check_same(done: Progress, number: int, y: Tensor, path: str | Path | None) -> None:
    """Refuse to continue from a checkpoint whose batch `number` had other labels."""
    if not torch.equal(done.values["label"][number], y.cpu()):
        raise ValueError(
            f"`checkpoint` (={path}) is of other data: the labels of batch {number} "
            "differ. Use a loader that does not shuffle, with the same batch size and "
            "limit, or delete the file"
        )
