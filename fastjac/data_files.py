"""Reading, checking and parsing the files that :mod:`fastjac.data` opens."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

KNOWN: dict[str, dict[str, str]] = {
    "MNIST": {
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    },
    "Fashion-MNIST": {
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    },
    "CIFAR-10": {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch_first1000.bin": "371f65da31ad652f5e24b3699a3e6515",
    },
}
"""The md5 of each published file's content, decompressed.

The ``.gz`` files these were computed from have the published md5 sums: MNIST
f68b3c2dcbeaaa9fbdd348bbdeb94873, d53e105ee54ea40749a09fcbcd1e9432,
9fb629c4189551a2d022fa330f9573f3, ec29112dd5afa0611ce80d1b7f02629c; Fashion-MNIST
8d4fb7e6c68d591d4c3dfef9ec88bf0d, 25c81989df183df01b3e8a0aad5dffbe,
bef4ecab320f06d8554ea6380940ec79, bb300cfdad3c16e7a12a480ee83cd310.
"""


class DataError(ValueError):
    """A data file that is missing, damaged, or not what it should be."""


def find(folder: Path, name: str) -> Path | None:
    """The file ``name`` or ``name.gz`` in ``folder``; idx files may have a dot."""
    dotted = name.replace("-idx", ".idx")
    for candidate in (name, name + ".gz", dotted, dotted + ".gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def read(folder: Path, name: str) -> bytes:
    """The bytes of a file, decompressed, or an error that says what is wrong."""
    path = find(folder, name)
    if path is None:
        raise DataError(f"{folder} has no file {name}; expected it there")
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError:
        raise DataError(
            f"{path} is cut short: its gzip stream ends after {len(raw):,} bytes; copy"
            " or download it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path} is damaged: {error}; copy or download it again"
        ) from None


def published(folder: Path, contents: dict[str, bytes]) -> str | None:
    """The published set that the files belong to, or None.

    Other sets use the same file names, and may share a set's labels, so that only files
    with images tell a set. Once one does, all of its files must be the published ones.
    """
    digests = {name: hashlib.md5(c).hexdigest() for name, c in contents.items()}
    for title, known in KNOWN.items():
        right = {name for name, md5 in known.items() if digests.get(name) == md5}
        if all("labels" in name for name in right):
            continue
        for name in sorted((set(known) & set(contents)) - right):
            raise DataError(
                f"{folder / name} is not the file of {title}, as others in its folder"
                f" are: its content has md5 {digests[name]}, expected {known[name]};"
                " copy or download it again, or pass verify=False if it is meant"
            )
        return title
    return None


def parse_idx(path: Path, content: bytes) -> np.ndarray:
    """IDX: two zero bytes, type 8 (bytes), rank, big-endian sizes, then the values."""
    if len(content) < 4 or content[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it begins with {content[:4]!r}, expected two"
            " zero bytes, a type and a rank"
        )
    kind, rank = content[2], content[3]
    if kind != 8:
        raise DataError(
            f"{path} holds values of IDX type 0x{kind:02x}; expected 0x08, unsigned"
            " bytes"
        )
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(
            f"{path} has {len(content):,} bytes, expected at least {header} for the"
            f" sizes of its {rank} axes; copy or download it again"
        )
    shape = tuple(np.frombuffer(content[4:header], dtype=">u4").tolist())
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DataError(
            f"{path} has {len(content):,} bytes, expected {expected:,} for the shape"
            f" {shape} in its header; copy or download it again"
        )
    if 0 in shape or rank == 0:
        raise DataError(f"{path} is empty: its header gives the shape {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def parse_cifar(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Records of 1 label byte and 3,072 pixels: red, green, blue planes of 32x32."""
    record = 1 + 3 * 32 * 32
    if len(content) == 0 or len(content) % record:
        hint = "; 3,074 would be CIFAR-100's" if len(content) % 3074 == 0 else ""
        raise DataError(
            f"{path} has {len(content):,} bytes, expected a multiple of {record:,}"
            f"{hint}; copy or download it again"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    labels = records[:, 0]
    if labels.max() > 9:
        at = int(np.argmax(labels > 9))
        raise DataError(
            f"{path} is damaged or no CIFAR-10 batch: the label of image {at} is"
            f" {labels[at]}, expected 0 to 9"
        )
    return records[:, 1:].reshape(-1, 3, 32, 32), labels
