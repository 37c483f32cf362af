"""The images of a run: found by the data set's name, and checked to be that set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastjac.data import DataError, ImageData, open_dataset

TITLES = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar-10": "CIFAR-10",
}
"""Names on the command line, and those that `fastjac.data` gives the known files."""


@dataclass(frozen=True)
class Source:
    """Where the images are, so that each process can read them itself.

    Attributes:
        folder: with the files, or with a folder of the data set's name.
        dataset: a name in `TITLES`.
        verify: insist that the files are the published ones, by their checksums.
    """

    folder: Path
    dataset: str
    verify: bool = True

    def open(self) -> ImageData:
        """Read and check the files.

        Raises:
            DataError: files are missing, damaged, or those of another data set.
        """
        inside = self.folder / self.dataset
        images = open_dataset(
            inside if inside.is_dir() else self.folder, verify=self.verify
        )
        title = TITLES[self.dataset]
        if self.verify and images.name != title:
            raise DataError(
                f"the files in {self.folder} are not those of {title}: their checksums"
                " are not the published ones. Give the folder of the original files, or"
                " --no-verify for other images in the same format"
            )
        return images
