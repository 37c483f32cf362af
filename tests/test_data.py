"""Readers of data files: what they give, and what they say of damaged files."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastjac import data
from fastjac.data import DataError, open_dataset

REPOSITORY = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("FASTJAC_DATA", REPOSITORY.parent / "shared" / "data"))
real_data = pytest.mark.skipif(
    not REAL.is_dir(),
    reason="no real data: set FASTJAC_DATA to a folder with mnist/, cifar-10/",
)

TRAIN_IMAGES = "train-images-idx3-ubyte"


def idx_bytes(values, kind=8):
    header = struct.pack(">BBBB", 0, 0, kind, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder, compress=False, **replaced):
    """Write a small set, return its arrays; ``replaced`` gives other contents."""
    random = np.random.RandomState(0)
    arrays = {}
    for part, count in (("train", 7), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = random.randint(
            0, 256, (count, 4, 6), dtype=np.uint8
        )
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 3).astype(np.uint8)
    for name, array in arrays.items():
        content = replaced.get(name.split("-ubyte")[0].replace("-", "_"))
        content = idx_bytes(array) if content is None else content
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


def cifar_bytes(count, seed):
    random = np.random.RandomState(seed)
    records = random.randint(0, 256, (count, 3073), dtype=np.uint8)
    records[:, 0] %= 10
    return records


class TestIdx:
    @pytest.mark.parametrize("compress", [False, True])
    def test_images_and_labels_are_those_of_the_files(self, tmp_path, compress):
        arrays = write_idx(tmp_path, compress)
        found = open_dataset(tmp_path)
        assert found.name == tmp_path.name and found.classes == 3
        assert found.shape == (1, 4, 6) and found.check is None and found.notes == ()
        for part, dataset in (("train", found.train), ("t10k", found.test)):
            images, labels = dataset.tensors
            assert images.dtype == torch.float32 and labels.dtype == torch.int64
            expected = arrays[f"{part}-images-idx3-ubyte"][:, None]
            np.testing.assert_array_equal((images * 255).round().numpy(), expected)
            assert images.min() >= 0 and images.max() <= 1
            assert labels.tolist() == arrays[f"{part}-labels-idx1-ubyte"].tolist()

    def test_missing_file_is_named(self, tmp_path):
        write_idx(tmp_path)
        (tmp_path / "t10k-labels-idx1-ubyte").unlink()
        with pytest.raises(DataError, match="has no file t10k-labels-idx1-ubyte"):
            open_dataset(tmp_path)

    def test_truncated_file_says_how_long_it_should_be(self, tmp_path):
        whole = idx_bytes(np.zeros((7, 4, 6), dtype=np.uint8))
        write_idx(tmp_path, train_images_idx3=whole[:-10])
        with pytest.raises(
            DataError, match=r"has 174 bytes, expected 184 .*\(7, 4, 6\)"
        ):
            open_dataset(tmp_path)

    @pytest.mark.parametrize("length", [3, 9])
    def test_file_cut_in_its_header(self, tmp_path, length):
        whole = idx_bytes(np.zeros((7, 4, 6), dtype=np.uint8))
        write_idx(tmp_path, train_images_idx3=whole[:length])
        with pytest.raises(DataError, match=TRAIN_IMAGES):
            open_dataset(tmp_path)

    def test_truncated_gzip(self, tmp_path):
        write_idx(tmp_path, compress=True)
        path = tmp_path / f"{TRAIN_IMAGES}.gz"
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(DataError, match=r"train-images.*\.gz is cut short"):
            open_dataset(tmp_path)

    @pytest.mark.parametrize("at", [0, 60, -6])
    def test_flipped_bits_in_gzip_are_found(self, tmp_path, at):
        write_idx(tmp_path, compress=True)
        path = tmp_path / f"{TRAIN_IMAGES}.gz"
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-images.*(damaged|cut short)"):
            open_dataset(tmp_path)

    def test_wrong_magic(self, tmp_path):
        write_idx(tmp_path, train_images_idx3=b"PNG, not IDX")
        with pytest.raises(DataError, match=r"not an IDX file: it begins with b'PNG,'"):
            open_dataset(tmp_path)

    def test_wrong_type(self, tmp_path):
        floats = idx_bytes(np.zeros((7, 4, 6), dtype=np.uint8), kind=0x0D)
        write_idx(tmp_path, train_images_idx3=floats)
        with pytest.raises(DataError, match=r"type 0x0d; expected 0x08"):
            open_dataset(tmp_path)

    def test_counts_that_differ(self, tmp_path):
        write_idx(tmp_path, train_labels_idx1=idx_bytes(np.zeros(6, dtype=np.uint8)))
        with pytest.raises(DataError, match=r"train images .*\(7, 4, 6\).*\(6,\)"):
            open_dataset(tmp_path)

    def test_empty_set(self, tmp_path):
        empty = idx_bytes(np.zeros((0, 4, 6), dtype=np.uint8))
        write_idx(tmp_path, train_images_idx3=empty)
        with pytest.raises(DataError, match=r"is empty: .*\(0, 4, 6\)"):
            open_dataset(tmp_path)


class TestCifar:
    def write(self, folder, count=4, test=None):
        batches = {f"data_batch_{i}.bin": cifar_bytes(count, i) for i in range(1, 6)}
        if test is not None:
            batches[test] = cifar_bytes(count - 1, 9)
        for name, records in batches.items():
            (folder / name).write_bytes(records.tobytes())
        return batches

    def test_images_are_red_green_blue_planes(self, tmp_path):
        batches = self.write(tmp_path)
        images, labels = open_dataset(tmp_path).train.tensors
        record = batches["data_batch_2.bin"][1]
        assert labels[5] == record[0]
        # Pixel (row 3, column 7) of the green plane.
        assert round(images[5, 1, 3, 7].item() * 255) == record[1 + 1024 + 3 * 32 + 7]

    def test_without_official_test_batch_5_is_held_out_and_it_says_so(self, tmp_path):
        batches = self.write(tmp_path, test="test_batch_first1000.bin")
        found = open_dataset(tmp_path)
        assert (len(found.train), len(found.test), len(found.check)) == (16, 4, 3)
        held_out = batches["data_batch_5.bin"][:, 0].tolist()
        assert found.test.tensors[1].tolist() == held_out
        assert "batches 1 to 4" in found.notes[0] and "batch 5" in found.notes[0]
        assert "first 3 images of the official test" in found.notes[1]

    def test_with_the_official_test_batch_the_split_is_official(self, tmp_path):
        self.write(tmp_path, test="test_batch.bin")
        found = open_dataset(tmp_path)
        assert (len(found.train), len(found.test)) == (20, 3)
        assert found.check is None and found.notes == ()

    def test_missing_batch(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "data_batch_3.bin").unlink()
        with pytest.raises(DataError, match=r"no file data_batch_3\.bin"):
            open_dataset(tmp_path)

    def test_truncated_batch(self, tmp_path):
        batches = self.write(tmp_path)
        whole = batches["data_batch_4.bin"].tobytes()
        (tmp_path / "data_batch_4.bin").write_bytes(whole[:-1])
        with pytest.raises(
            DataError, match=r"batch_4.*12,291 bytes.*multiple of 3,073"
        ):
            open_dataset(tmp_path)

    def test_label_out_of_range(self, tmp_path):
        batches = self.write(tmp_path)
        records = batches["data_batch_1.bin"]
        records[2, 0] = 77
        (tmp_path / "data_batch_1.bin").write_bytes(records.tobytes())
        with pytest.raises(DataError, match="label of image 2 is 77, expected 0 to 9"):
            open_dataset(tmp_path)

    def test_cifar100_is_recognised_as_such(self, tmp_path):
        self.write(tmp_path)
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(2 * 3074))
        with pytest.raises(DataError, match="CIFAR-100"):
            open_dataset(tmp_path)


class TestOpen:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(DataError, match="no folder at"):
            open_dataset(tmp_path / "nowhere")

    def test_folder_above_hints_at_those_inside(self, tmp_path):
        (tmp_path / "mnist").mkdir()
        with pytest.raises(DataError, match="it has the folders mnist: did you mean"):
            open_dataset(tmp_path)

    def test_digits_are_split_once_and_for_all(self):
        found = open_dataset("digits")
        assert (len(found.train), len(found.test), found.shape) == (
            1347,
            450,
            (1, 8, 8),
        )
        again = data.digits()
        assert torch.equal(found.test.tensors[0], again.test.tensors[0])
        images, labels = found.train.tensors
        assert images.dtype == torch.float32
        assert images.min() == 0 and images.max() == 1
        counts = torch.bincount(found.test.tensors[1])
        total = counts + torch.bincount(labels)
        assert ((counts / total - 0.25).abs() < 0.01).all()
        # No test image is among the training ones.
        train_rows = {row.tobytes() for row in images.numpy()}
        assert not any(
            row.tobytes() in train_rows for row in found.test.tensors[0].numpy()
        )


@real_data
class TestPublishedFiles:
    @pytest.mark.parametrize(
        ("folder", "name"), [("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")]
    )
    def test_published_sets_are_recognised(self, folder, name):
        found = open_dataset(REAL / folder)
        assert found.name == name and found.classes == 10
        assert found.train.tensors[0].shape == (60_000, 1, 28, 28)
        assert found.test.tensors[0].shape == (10_000, 1, 28, 28)

    def test_first_mnist_digits(self):
        assert open_dataset(REAL / "mnist").train.tensors[1][:5].tolist() == [
            5,
            0,
            4,
            1,
            9,
        ]

    def test_file_of_another_set_among_those_of_mnist_is_found(self, tmp_path):
        for file in (REAL / "mnist").iterdir():
            (tmp_path / file.name).symlink_to(file)
        other = tmp_path / f"{TRAIN_IMAGES}.gz"
        other.unlink()
        other.symlink_to(REAL / "fashion-mnist" / other.name)
        with pytest.raises(DataError, match=f"{TRAIN_IMAGES} is not the file of MNIST"):
            open_dataset(tmp_path)
        assert open_dataset(tmp_path, verify=False).name == tmp_path.name

    def test_cifar10(self):
        found = open_dataset(REAL / "cifar-10")
        assert found.name == "CIFAR-10" and found.shape == (3, 32, 32)
        assert len(found.train) >= 40_000 and len(found.test) == 10_000
