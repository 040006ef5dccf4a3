"""What the cameras see: real handwriting, and how it changes.

The images are scikit-learn's bundled digits (1,797 scans of handwritten digits, 8×8 pixels of 0
to 16; E. Alpaydin, C. Kaynak 1998). Rules:

1. No row serves twice: the laboratory's rows train version 1, the first half of the field's rows
   is what devices see until retraining begins (and may send home as samples), the second half is
   what they see afterwards. So no version is ever judged on rows that it was trained on.
2. Everything is seeded; two runs see the same images.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

SEED = 20_26
LABEL = "digit"
COLUMNS = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
LAB_ROWS = 900
# A camera under the new light sees each scan several times, each time with other noise.
REPEATS = 3

Images = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Images as rows: `pixels` is `(n, 64)` float64 from 0 to 16, `labels` is `(n,)`."""

    pixels: Images
    labels: Labels

    def pick(self, index: NDArray[np.int64]) -> "Rows":
        """Return the rows at `index`."""
        return Rows(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Digits:
    """The three disjoint parts of the data."""

    lab: Rows
    field_first: Rows
    field_second: Rows


def load() -> Digits:
    """Split the bundled digits."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(labels))
    rows = Rows(pixels[order], labels[order])
    cut = LAB_ROWS + (len(labels) - LAB_ROWS) // 2
    index = np.arange(len(labels))
    return Digits(
        rows.pick(index[:LAB_ROWS]), rows.pick(index[LAB_ROWS:cut]), rows.pick(index[cut:])
    )


def seen_by(rows: Rows, camera: int) -> Rows:
    """Return the rows in the order in which one camera sees them."""
    order = np.random.default_rng([SEED, camera]).permutation(len(rows.labels))
    return rows.pick(order)


def under_new_light(rows: Rows, camera: int) -> Rows:
    """Return the rows with less contrast, a soft focus and sensor noise, each `REPEATS` times.

    Contrast is pulled towards a brighter grey, the blur is a 3×3 binomial filter mixed half and
    half with the image, the noise is Gaussian with a standard deviation of 0.8 of
    16 levels.
    """
    rng = np.random.default_rng([SEED, camera, 1])
    images = np.repeat(rows.pixels.reshape(-1, 8, 8), REPEATS, axis=0)
    blurred = 0.5 * images + 0.5 * _binomial(images)
    flat = 7.0 + 0.4 * blurred
    noisy = np.clip(np.round(flat + rng.normal(0.0, 0.8, flat.shape)), 0, 16)
    return Rows(noisy.reshape(-1, 64), np.repeat(rows.labels, REPEATS))


def stuck(rows: Rows) -> Rows:
    """Return what a camera with a frozen sensor sees: one image, whatever is before it."""
    return Rows(np.repeat(rows.pixels[:1], len(rows.labels), axis=0), rows.labels)


def write_csv(path: Path, rows: Rows) -> None:
    """Write rows with their labels, replacing the file as a whole.

    An agent that replays the file sees either the old rows or the new ones.
    """
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, LABEL])
        for pixels, label in zip(rows.pixels, rows.labels, strict=True):
            writer.writerow([*(int(value) for value in pixels), int(label)])
    partial.replace(path)


def _binomial(images: Images) -> Images:
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = (padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]) / 4
    blurred: Images = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 4
    return blurred
