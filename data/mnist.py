"""MNIST: the handwritten digits that half of the course learns from
=================================================================

70,000 grey images of 28×28 pixels, labelled 0 to 9. Run it to see which MNIST the scripts
will use, and to fetch it beforehand::

    python data/mnist.py

The files are looked for in ``--data-dir`` (or the folder named by the environment variable
COURSE_DATA), as ``mnist/train-images-idx3-ubyte.gz`` and so on; then in ``data/mnist/``, where
an earlier download left them; then they are downloaded. With none of these, scikit-learn's
1,797 real 8×8 digits stand in, enlarged to 28×28: everything runs, but the results are not
MNIST's, and are labelled so.

Source: Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, 1998. The
55,000/5,000/10,000 split is the one that TensorFlow 1's tutorials used.
"""

import argparse
import dataclasses
import gzip
import os
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.download import OFFLINE_VARIABLE, DownloadError, fetch
from utils.run import sha256

CACHE = Path(__file__).resolve().parent / "mnist"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://dataset.bj.bcebos.com/mnist/",  # in China
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)
SHA256 = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
FILES = {f"{stem}.gz": digest for stem, digest in SHA256.items()}
VALIDATION = 5_000  # the last of the 60,000 training images


@dataclass(frozen=True)
class Mnist:
    """Images are uint8 of shape [n, 28, 28], 0 paper to 255 ink; labels are uint8 of shape [n].

    Attributes:
        source: where the data came from, in words.
        stand_in: True when they are not MNIST.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    source: str
    stand_in: bool = False

    def describe(self) -> dict[str, str | bool | int]:
        """What ``result.json`` says of the data."""
        images = len(self.test_images)
        return {"source": self.source, "stand_in": self.stand_in, "test_images": images}

    def first(self, train: int, validation: int) -> "Mnist":
        """The same with only the first so many training and validation images, for a first look.
        The test set stays whole."""
        return dataclasses.replace(
            self,
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            validation_images=self.validation_images[:validation],
            validation_labels=self.validation_labels[:validation],
        )


def batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seed: int | None = None
) -> Any:
    """A ``tf.data.Dataset`` of batches (images [b, …], labels [b]), the last one smaller.

    Args:
        images: any array [n, …].
        labels: [n].
        batch_size: b.
        seed: shuffle over all n images, anew in each epoch; None keeps the order.
    """
    import tensorflow as tf  # slow, and not needed to look at the files

    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    if seed is not None:
        dataset = dataset.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    options = tf.data.Options()
    options.autotune.enabled = False  # on a CPU it may wait for seconds at the end of an epoch
    return dataset.batch(batch_size).prefetch(2).with_options(options)


def existing_dir(text: str) -> Path:
    """An argparse type: a folder that exists."""
    path = Path(text).expanduser()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return path


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-dir``, the flag of every script that reads MNIST."""
    parser.add_argument(
        "--data-dir",
        type=existing_dir,
        metavar="DIR",
        help="folder that holds mnist/*.gz (default: the environment variable COURSE_DATA, then "
        "what was downloaded before, then a download)",
    )


def load(data_dir: Path | None = None) -> Mnist:
    """MNIST split 55,000/5,000/10,000 from the first place that has it whole.

    Args:
        data_dir: a folder with ``mnist/*.gz`` in it, looked into first; the environment
            variable ``COURSE_DATA`` when None.

    Returns:
        MNIST, or the stand-in (see the top of this file) when it is nowhere to be had.
    """
    named = data_dir or (Path(os.environ["COURSE_DATA"]) if os.environ.get("COURSE_DATA") else None)
    if named is not None:
        folder = named.expanduser().resolve() / "mnist"
        faults = [fault for name in FILES if (fault := _fault(folder / name))]
        if not faults:
            return _split(*_read_files(folder), source=f"MNIST in {folder}")
        listed = "".join(f"\n  - {fault}" for fault in faults)
        where = "--data-dir" if data_dir else "COURSE_DATA"
        print(
            f"{where}: {folder} does not hold MNIST as its four original files, so the search "
            f"goes on elsewhere:{listed}",
            file=sys.stderr,
        )
    try:
        for name, digest in FILES.items():
            fetch([mirror + name for mirror in MIRRORS], CACHE / name, digest)
    except DownloadError as error:
        print(
            "\n*** STAND-IN DATA: MNIST is missing; scikit-learn's 1,797 small digits take its "
            f"place, and no result below is MNIST's ***\n{error}\n"
            "  or name a folder that holds mnist/ with the four files, by --data-dir or the "
            "environment variable COURSE_DATA.\n",
            file=sys.stderr,
        )
        return stand_in()
    return _split(*_read_files(CACHE), source=f"MNIST in {CACHE}")


def _fault(path: Path) -> str | None:
    """What is wrong with one of MNIST's files; None if nothing is."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        good = sha256(path) == FILES[path.name]
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror}"
    return None if good else f"{path.name} is damaged: it is cut short or altered (wrong SHA-256)"


def _read_files(folder: Path) -> list[np.ndarray]:
    return [read_idx(folder / name) for name in FILES]


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped idx file of bytes: a magic number 00 00 08 <rank>, one big-endian
    32-bit size for each dimension, then the bytes.

    Returns:
        A uint8 array with the sizes that the file states.

    Raises:
        ValueError: the file is not such a file, or its length and sizes disagree; the message
            names it.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from error
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: not an idx file of bytes (it begins {content[:4].hex()})")
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{path}: ends inside its header")
    shape = struct.unpack(f">{rank}I", content[4:start])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(content) - start != expected:
        raise ValueError(f"{path}: {expected} bytes announced, {len(content) - start} found")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _split(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    source: str,
) -> Mnist:
    return Mnist(
        train_images=images[:-VALIDATION],
        train_labels=labels[:-VALIDATION],
        validation_images=images[-VALIDATION:],
        validation_labels=labels[-VALIDATION:],
        test_images=test_images,
        test_labels=test_labels,
        source=source,
    )


def stand_in() -> Mnist:
    """scikit-learn's digits (real, 8×8, 17 shades) as 28×28 bytes: 1,297 to train on, 200 to
    validate, 300 to test. Enlarged to 20×20 and set in the middle, as MNIST's digits are."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((len(digits.images), 28, 28), np.uint8)
    for image, digit in zip(images, digits.images, strict=True):
        small = Image.fromarray((digit * (255 / 16)).astype(np.uint8))
        image[4:24, 4:24] = np.asarray(small.resize((20, 20), Image.Resampling.BICUBIC))
    # The digits come writer by writer; mixed, each part has every writer and digit in it.
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.uint8)
    return Mnist(
        train_images=images[:1297],
        train_labels=labels[:1297],
        validation_images=images[1297:1497],
        validation_labels=labels[1297:1497],
        test_images=images[1497:],
        test_labels=labels[1497:],
        source="scikit-learn's digits (stand-in for MNIST)",
        stand_in=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_dir(parser)
    mnist = load(parser.parse_args().data_dir)
    print(f"{mnist.source}{' [STAND-IN]' if mnist.stand_in else ''}")
    for part in ("train", "validation", "test"):
        images, labels = getattr(mnist, f"{part}_images"), getattr(mnist, f"{part}_labels")
        counts = " ".join(str(count) for count in np.bincount(labels, minlength=10))
        print(f"{part:>10}: {len(images):6,} images {images.shape[1:]}, of each digit: {counts}")
    if mnist.stand_in:
        sys.exit(f"MNIST itself could not be had ({OFFLINE_VARIABLE} set, or no network).")


if __name__ == "__main__":
    main()
