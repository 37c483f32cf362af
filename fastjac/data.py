"""Image sets as torch datasets: IDX files, CIFAR-10 batches, scikit-learn's digits.

Images are float32 in [0, 1] of shape (N, C, H, W), labels are int64 class indices (N,).
Files are read whole and checked before they are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fastjac.data_files import DataError, find, parse_cifar, parse_idx, published, read

__all__ = ["DataError", "ImageData", "cifar10", "digits", "idx", "open_dataset"]


@dataclass(frozen=True)
class ImageData:
    """A data set with its parts and what must be said about them.

    Attributes:
        name: of a published set whose checksums were recognised, else the folder's.
        train, test: images and labels.
        check: further held-out images, or None.
        classes: number of classes K.
        notes: sentences to print beside any number measured on it.
    """

    name: str
    train: TensorDataset
    test: TensorDataset
    check: TensorDataset | None
    classes: int
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.train.tensors[0].shape[1:])

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return (
            f"{self.name}: {len(self.train):,} training and {len(self.test):,} test"
            f" images of {size}, {self.classes} classes"
        )


def open_dataset(path: str | Path, *, verify: bool = True) -> ImageData:
    """Open a folder of IDX files or of CIFAR-10 binary batches, or ``"digits"``.

    IDX folders hold ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the
    two ``t10k-`` files, each plain or with ``.gz``. CIFAR-10 folders hold
    ``data_batch_1.bin`` to ``data_batch_5.bin`` (the "binary version") and perhaps a
    test batch; see :func:`cifar10` for what becomes training and test.

    Args:
        path: the folder, or the word ``digits`` for scikit-learn's bundled set.
        verify: where some files are those of MNIST, Fashion-MNIST or CIFAR-10, insist
            that the others are too.

    Raises:
        DataError: nothing readable there, or a missing or damaged file.

    Example:
        >>> print(open_dataset("digits"))
        digits: 1,347 training and 450 test images of 1x8x8, 10 classes
    """
    if str(path) == "digits":
        return digits()
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            f"no folder at {folder}: give one with IDX files or CIFAR-10 batches, or"
            " the word digits"
        )
    if any(find(folder, name) for name in _IDX_NAMES):
        return idx(folder, verify=verify)
    if any(folder.glob("data_batch_*.bin")):
        return cifar10(folder, verify=verify)
    inside = [p.name for p in sorted(folder.iterdir()) if p.is_dir()]
    hint = (
        f"; it has the folders {', '.join(inside)}: did you mean one?" if inside else ""
    )
    raise DataError(
        f"{folder} has neither IDX files (train-images-idx3-ubyte[.gz], ...) nor"
        f" CIFAR-10 batches (data_batch_1.bin, ...){hint}"
    )


_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(folder: str | Path, *, verify: bool = True) -> ImageData:
    """Open a folder in the format of MNIST: four IDX files, plain or ``.gz``.

    Raises:
        DataError: a file is missing or damaged, the counts of images and labels differ,
            or one of a published set's files is not what was published.
    """
    folder = Path(folder)
    contents = {name: read(folder, name) for name in _IDX_NAMES}
    known = published(folder, contents) if verify else None
    arrays = {name: parse_idx(folder / name, c) for name, c in contents.items()}
    parts = []
    for part in ("train", "t10k"):
        images = arrays[f"{part}-images-idx3-ubyte"]
        labels = arrays[f"{part}-labels-idx1-ubyte"]
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"{folder}: {part} images of shape {images.shape} and labels of shape"
                f" {labels.shape} do not match; expected (N, H, W) and (N,)"
            )
        parts.append((images[:, None], labels))
    (train_images, train_labels), (test_images, test_labels) = parts
    classes = 1 + int(max(train_labels.max(), test_labels.max()))
    return ImageData(
        name=known or folder.resolve().name,
        train=_dataset(train_images, train_labels),
        test=_dataset(test_images, test_labels),
        check=None,
        classes=classes,
    )


def cifar10(folder: str | Path, *, verify: bool = True) -> ImageData:
    """Open CIFAR-10's binary batches.

    With the official ``test_batch.bin`` of 10,000 images, the split is the official
    one. Without it, batches 1 to 4 are for training and batch 5 is the held-out test;
    ``test_batch_first1000.bin``, the first 1,000 official test images, becomes
    ``check`` if it is there. ``notes`` says which.

    Raises:
        DataError: a batch is missing or damaged, or is not the published one while
            others in the folder are.
    """
    folder = Path(folder)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    official = "test_batch.bin" if (folder / "test_batch.bin").exists() else None
    first = "test_batch_first1000.bin"
    extra = official or (first if (folder / first).exists() else None)
    contents = {
        name: read(folder, name) for name in [*names, *([extra] if extra else [])]
    }
    known = published(folder, contents) if verify else None
    parts = {name: parse_cifar(folder / name, c) for name, c in contents.items()}
    training = names if official else names[:4]
    test = _dataset(*parts[official or names[4]])
    check = _dataset(*parts[first]) if extra == first else None
    notes = []
    if not official:
        notes.append(
            f"CIFAR-10: trained on batches 1 to 4; the test is batch 5 ({len(test):,}"
            " images held out of the training set), not the official test set"
        )
    if check is not None:
        notes.append(
            f"second check: the first {len(check):,} images of the official test batch"
        )
    return ImageData(
        name=known or folder.resolve().name,
        train=_dataset(
            np.concatenate([parts[name][0] for name in training]),
            np.concatenate([parts[name][1] for name in training]),
        ),
        test=test,
        check=check,
        classes=10,
        notes=tuple(notes),
    )


def digits() -> ImageData:
    """scikit-learn's bundled digits: 1,797 images of 8x8, split once and for all.

    A quarter of each class is the test set, drawn with a fixed seed.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "the digits set is part of scikit-learn, which is not installed:"
            " pip install scikit-learn, or 'fastjac[cli]'"
        ) from None
    bunch = load_digits()
    images, labels = bunch.images[:, None] / 16.0, bunch.target
    random = np.random.RandomState(0)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        test[random.permutation(members)[: round(len(members) / 4)]] = True
    return ImageData(
        name="digits",
        train=_dataset(images[~test], labels[~test]),
        test=_dataset(images[test], labels[test]),
        check=None,
        classes=10,
    )


def _dataset(images: np.ndarray, labels: np.ndarray) -> TensorDataset:
    """Bytes 0..255, or floats 0..1, to float32 in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    pixels = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)) / scale
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))
